"""How far and how fast the actions of demonstrations went: what a robot is held to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowleap.policy.core.errors import FlowleapError

SLACK = 0.1  # of the range, by which a policy may go beyond what was demonstrated


@dataclass(frozen=True)
class ActionLimits:
    """Bounds of each action dimension, in real units.

    Attributes:
        low, high: smallest and largest value.
        rate: largest change from one action to the next.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    rate: tuple[float, ...]

    @classmethod
    def of(cls, actions: ArrayLike, episode_ends: ArrayLike) -> Self:
        """Those of demonstrations: actions [N, A], and the frame after each episode's last one."""
        values = np.asarray(actions, np.float64)
        inside = np.setdiff1d(np.arange(1, len(values)), np.asarray(episode_ends))
        rate = np.abs(values[inside] - values[inside - 1]).max(0, initial=0.0)
        return cls(*(tuple(map(float, part)) for part in (values.min(0), values.max(0), rate)))

    @classmethod
    def from_dict(cls, data: Any, action_dim: int) -> Self:
        """Build from untrusted plain data; raise `FlowleapError`."""
        try:
            parts = [tuple(float(x) for x in data[part.name]) for part in fields(cls)]
        except (KeyError, TypeError, ValueError) as error:
            raise FlowleapError(f"limits must hold lists of numbers low, high and rate ({error})") from error
        limits = cls(*parts)
        low, high, rate = (np.asarray(part) for part in parts)
        if any(len(part) != action_dim for part in parts) or not np.isfinite([low, high, rate]).all():
            raise FlowleapError(f"limits must hold {action_dim} finite numbers each")
        if (low > high).any() or (rate < 0).any():
            raise FlowleapError("limits: low must not exceed high, and rate must not be negative")
        return limits

    def widened(self, slack: float = SLACK) -> ActionLimits:
        """With `slack` times the range more room on either side, and as much more speed."""
        room = slack * (np.asarray(self.high) - np.asarray(self.low))
        parts = (
            np.asarray(self.low) - room,
            np.asarray(self.high) + room,
            np.asarray(self.rate) * (1 + slack),
        )
        return ActionLimits(*(tuple(map(float, part)) for part in parts))

    def apply(self, action: NDArray[np.float32], previous: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """The nearest action [A] inside the bounds, at most `rate` from the `previous` one."""
        bounded = np.clip(action, self.low, self.high)
        if previous is not None:
            rate = np.asarray(self.rate)
            bounded = np.clip(bounded, previous - rate, previous + rate)
        return bounded.astype(np.float32)
