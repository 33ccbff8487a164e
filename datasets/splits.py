"""Published splits of demonstrations by name: `episodes=diffusion_policy` trains on what the published policies did."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_SEED = 42
_VALIDATION = 0.02  # of the episodes
_MOST = 90  # episodes to train on


def diffusion_policy(n: int) -> list[int]:
    """Diffusion Policy's configs (arXiv 2303.04137): 2 % held out for validation, then 90 drawn from the rest, seed 42.

    Of the 206 human Push-T episodes these are 4, and 90 with 11,356 frames.
    """
    held_out = min(max(1, round(n * _VALIDATION)), n - 1)
    validation = np.random.default_rng(_SEED).choice(n, size=held_out, replace=False)
    rest = np.setdiff1d(np.arange(n), validation)
    if len(rest) > _MOST:
        rest = rest[np.random.default_rng(_SEED).choice(len(rest), size=_MOST, replace=False)]
    return sorted(rest.tolist())


SPLITS: dict[str, Callable[[int], list[int]]] = {"diffusion_policy": diffusion_policy}
"""Name -> what chooses the episodes to train on, of so many."""
