"""How smoothly a policy moves: what its actions do where one chunk goes over into the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Motion(NamedTuple):
    """Mean second differences |a_i - 2 a_{i-1} + a_{i-2}| of an episode's actions, in their own unit.

    Attributes:
        jump: where a new chunk takes over: how far its first action is from going straight on.
        interior: where no new chunk is near.
    """

    jump: float
    interior: float


def motion(actions: np.ndarray, boundaries: Sequence[int]) -> Motion | None:
    """How smooth the actions [T, A] of an episode are.

    Args:
        actions: in the order of their execution.
        boundaries: the indices at which a new chunk takes over.

    Returns:
        None where an episode has no boundary, or nothing between.
    """
    if len(actions) < 3:
        return None
    bends = np.linalg.norm(np.diff(actions.astype(np.float64), n=2, axis=0), axis=1)  # of index i + 2
    at = np.asarray([b for b in boundaries if 2 <= b < len(actions)], np.int64)
    near = np.concatenate([at, at + 1]) - 2
    inside = np.delete(bends, near[near < len(bends)])
    if not len(at) or not len(inside):
        return None
    return Motion(float(bends[at - 2].mean()), float(inside.mean()))
