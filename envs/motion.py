"""How smoothly a policy moves: what its actions do, above all where one chunk goes over into the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SLACK = 0.01  # of the range: who learnt to go to a bound comes out a little inside or outside of it


class Motion(NamedTuple):
    """How an episode's executed actions change from step to step, in their own unit.

    Attributes:
        jump: mean second difference |a_i - 2 a_{i-1} + a_{i-2}| where a new chunk takes over: how far its first action
            is from going straight on.
        interior: the same where no new chunk is near.
        acceleration: root mean square of all second differences, unit / step^2.
        jerk: root mean square of all third differences, unit / step^3.
        clipped: share of the actions that lay outside of the environment's bounds, by more than a hundredth of the
            range, before they were clipped to them.
    """

    jump: float
    interior: float
    acceleration: float
    jerk: float
    clipped: float


def motion(
    actions: np.ndarray, boundaries: Sequence[int], low: np.ndarray | float, high: np.ndarray | float
) -> Motion | None:
    """How smooth the actions [T, A] of an episode are.

    Args:
        actions: as the policy chose them, in the order of their execution.
        boundaries: the indices at which a new chunk takes over.
        low, high: the bounds that actions were clipped to, [A].

    Returns:
        None where an episode has no boundary, or nothing between.
    """
    if len(actions) < 4:
        return None
    chosen = actions.astype(np.float64)
    executed = np.clip(chosen, low, high)
    beyond = np.abs(executed - chosen) > _SLACK * np.subtract(high, low, dtype=np.float64)
    bends = np.linalg.norm(np.diff(executed, n=2, axis=0), axis=1)  # of index i + 2
    jerks = np.linalg.norm(np.diff(executed, n=3, axis=0), axis=1)
    at = np.asarray([b for b in boundaries if 2 <= b < len(actions)], np.int64)
    near = np.concatenate([at, at + 1]) - 2
    inside = np.delete(bends, near[near < len(bends)])
    if not len(at) or not len(inside):
        return None
    return Motion(
        jump=float(bends[at - 2].mean()),
        interior=float(inside.mean()),
        acceleration=float(np.sqrt(np.mean(bends**2))),
        jerk=float(np.sqrt(np.mean(jerks**2))),
        clipped=float(beyond.any(axis=1).mean()),
    )
