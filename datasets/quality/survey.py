"""The numbers behind the checks, from one pass over the low-dim columns, episode by episode."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.quality.angles import Quaternion, Quaternions, Wrap, Wraps

_SWITCH = 0.9  # share of frames at either end from which a dimension is a switch (a gripper)
_JITTER = 0.1  # a dimension steps by this share of its range as a rule: noise, or jerky commands
_TYPICAL = (
    0.01  # share of the range that the usual range within an episode must have to be the scale of motion
)


class Extremes:
    """Range of each dimension, and how many frames lie exactly at its ends."""

    def __init__(self, size: int) -> None:
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)
        self.at_low, self.at_high = np.zeros(size, np.int64), np.zeros(size, np.int64)

    def add(self, values: NDArray) -> None:
        """Take frames [T, size]; what is not finite is left out."""
        finite = np.isfinite(values)
        low = values.min(axis=0, where=finite, initial=np.inf)
        high = values.max(axis=0, where=finite, initial=-np.inf)
        self.at_low[low < self.low] = 0
        self.at_high[high > self.high] = 0
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.at_low += (values == self.low).sum(axis=0)
        self.at_high += (values == self.high).sum(axis=0)


class ColumnSurvey:
    """What the checks ask of one column of `size` numbers a frame.

    Attributes:
        extremes: its range.
        spans: the range within each episode, float64 [E, size].
        steps: the largest step of each episode, float64 [E, size].
    """

    def __init__(self, size: int) -> None:
        self.extremes = Extremes(size)
        self._spans: list[NDArray] = []
        self._steps: list[NDArray] = []
        self._squares, self._frames = np.zeros(size), 0
        self._wraps, self._quaternions = Wraps(size), Quaternions(size)

    def add(self, index: int, values: NDArray) -> None:
        """Take the episode `index`, float64 [T, size]."""
        self.extremes.add(values)
        with np.errstate(invalid="ignore"):  # infinite numbers are counted elsewhere
            steps = np.abs(np.diff(values, axis=0))
            self._steps.append(steps.max(axis=0, initial=0.0))
            self._spans.append(np.ptp(values, axis=0))
            self._squares += np.square(np.nan_to_num(steps, posinf=0.0)).sum(axis=0)
            self._frames += len(values)
            self._wraps.add(values)
            self._quaternions.add(index, values)

    @property
    def spans(self) -> NDArray:
        return np.stack(self._spans)

    @property
    def steps(self) -> NDArray:
        return np.stack(self._steps)

    @property
    def switches(self) -> NDArray[np.bool_]:
        """Which dimensions are at one of two values in nearly all frames, [size]."""
        ends = self.extremes
        switches: NDArray[np.bool_] = (ends.at_low + ends.at_high) / self._frames > _SWITCH
        return switches

    @property
    def scale(self) -> NDArray:
        """How far each dimension usually moves within an episode, [size]; 0 where it does not, or is all jitter.

        A spike sets the range of all frames, but not that of most episodes.
        """
        extent = self.extremes.high - self.extremes.low
        extent = np.where(np.isfinite(extent), extent, 0.0)
        usual = np.nan_to_num(np.median(self.spans, axis=0), posinf=0.0)
        scale = np.where(usual > _TYPICAL * extent, usual, extent)
        jitter = np.sqrt(self._squares / self._frames) > _JITTER * scale
        return np.where(jitter & ~self.switches, 0.0, scale)

    def wraps(self) -> list[Wrap]:
        """The dimensions that are angles and wrap."""
        return [
            w for w in self._wraps.found(self.extremes.low, self.extremes.high) if not self.switches[w.dim]
        ]

    @property
    def rotation_dims(self) -> set[int]:
        """Dimensions that are part of a quaternion."""
        return self._quaternions.dims

    def quaternions(self) -> list[Quaternion]:
        """The quaternions whose sign flips."""
        return self._quaternions.found()


Survey = Mapping[str, ColumnSurvey]
