"""Whether an environment gives what its spaces promise; if not, it is named, with the key and the step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from flowleap.policy.core.errors import FlowleapError

_FEW = 100


def check_step(
    task: str,
    spaces: Mapping[str, Any],
    obs: Mapping[str, Any],
    step: int,
    reward: float = 0.0,
    unseen: Collection[str] = (),
) -> None:
    """Look at one frame of observations, and the reward that came with it.

    Args:
        task: name, for messages.
        spaces: key -> Box.
        step: actions since the reset; 0 is the reset itself.
        unseen: keys of images and clouds, which may be missing where nobody will look at them.

    Raises:
        FlowleapError: a key is missing, has another shape or dtype than its space, or a number is not finite.
    """
    when = f"at step {step}" if step else "after reset"
    for key, space in spaces.items():
        if key not in obs and key in unseen:
            continue
        problem = _problem(np.asarray(obs[key]), space) if key in obs else "is missing"
        if problem:
            raise FlowleapError(
                f"task {task}: observation '{key}' {problem} {when}; the environment must give what its "
                "observation space says, finite"
            )
    if not math.isfinite(reward):
        raise FlowleapError(f"task {task}: the environment returned the reward {reward} {when}")


def _problem(value: np.ndarray, space: Box) -> str | None:
    if value.shape != space.shape:
        return f"has shape {value.shape}, its space says {space.shape},"
    # float64 for float32 is common, and harmless
    if value.dtype != space.dtype and not np.can_cast(value.dtype, space.dtype, "same_kind"):
        return f"is {value.dtype}, its space says {space.dtype},"
    if value.dtype.kind == "f" and not _finite(value):
        place = np.argwhere(~np.isfinite(value))[0]
        return f"is {value[tuple(place)]} at index {place.tolist()}"
    return None


def _finite(value: np.ndarray) -> bool:
    # numpy's own look at a few numbers takes a tenth of a step of Push-T.
    few = value.size <= _FEW and math.isfinite(sum(value.ravel().tolist()))
    return few or bool(np.isfinite(value).all())
