"""Rotations that jump where the robot does not: angles that wrap, and quaternions whose sign flips.

Both are found in one pass over the episodes of a column, and repaired an episode at a time (`repairs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PERIODS = (2 * np.pi, 360.0)
_WRAP = 0.75  # a step of more than this share of a period wraps ...
_QUARTER = 0.25  # ... unless steps from this share on are common: then the numbers are noise
_COVERED = 0.9  # share of the period that a wrapping angle covers at least; an upper bound is the period ...
_ROUND = 1e-3  # ... and this share of it, for rounding

_UNIT = 1e-3  # the norm of a quaternion differs from 1 by less
_OPPOSITE = -0.9  # product of two quaternions below which one is about the negative of the other
_TILTED = 0.1  # its second largest number is larger; in (0, 0, 0, 1) to (0, 0, 0, -1) a gripper closes
_NEAR = 0.7  # product with the reference from which a rotation is clearly on its side


class Wrap(NamedTuple):
    """A dimension that wraps: its period, where it does, and the angle that episodes begin around."""

    dim: int
    period: float
    episodes: list[int]
    steps: int
    reference: float


class Wraps:
    """Looks for wrapping angles in a column of `size` numbers a frame."""

    def __init__(self, size: int) -> None:
        self._wraps, self._large = (np.zeros((len(_PERIODS), size), np.int64) for _ in range(2))
        self._starts = np.zeros((len(_PERIODS), size), np.complex128)
        self._episodes: list[NDArray[np.bool_]] = []

    def add(self, values: NDArray) -> None:
        """Take the next episode [T, size]."""
        steps, start = np.abs(np.diff(values, axis=0)), np.nan_to_num(values[0], posinf=0.0, neginf=0.0)
        counts = []
        for i, period in enumerate(_PERIODS):
            counts.append((steps > _WRAP * period).sum(axis=0))
            self._large[i] += ((steps > _QUARTER * period) & (steps <= _WRAP * period)).sum(axis=0)
            self._starts[i] += np.exp(2j * np.pi * start / period)
        self._wraps += counts
        self._episodes.append(np.array(counts) > 0)

    def found(self, low: NDArray, high: NDArray) -> list[Wrap]:
        """The dimensions that wrap, given the range [size] of each."""
        found = []
        for i, period in enumerate(_PERIODS):
            slack = _ROUND * period
            signed = (low >= -period / 2 - slack) & (high <= period / 2 + slack)
            inside = signed | ((low >= -slack) & (high <= period + slack))
            wraps = inside & (high - low >= _COVERED * period) & (2 * self._large[i] < self._wraps[i])
            for dim in np.flatnonzero(wraps).tolist():
                episodes = [e for e, where in enumerate(self._episodes) if where[i, dim]]
                reference = float(np.angle(self._starts[i, dim])) * period / (2 * np.pi)
                found.append(Wrap(dim, period, episodes, int(self._wraps[i, dim]), reference))
        return found


def unwrapped(angles: NDArray, period: float, reference: float) -> NDArray:
    """Angles [T] of an episode without jumps, the first within half a period of `reference`."""
    smooth = np.unwrap(angles, period=period)
    return smooth + period * np.round((reference - smooth[0]) / period)


class Quaternion(NamedTuple):
    """Four neighbouring dimensions that are one: where its sign flips, and the rotation that episodes begin around."""

    dim: int
    flips: int
    episodes: list[int]
    opposed: list[int]
    reference: NDArray


class _Four:
    """Four neighbouring dimensions that may be a quaternion."""

    def __init__(self) -> None:
        self.flips, self.episodes = 0, list[int]()
        self.starts: list[NDArray] = []
        self.turns = False  # some rotation is clearly none of (0, 0, 0, 1) and its like

    def add(self, index: int, q: NDArray) -> bool:
        """Take an episode [T, 4]; whether all are of unit norm."""
        if len(q) == 0:
            return True
        if np.abs(np.linalg.norm(q, axis=1) - 1).max() > _UNIT:
            return False
        flips = int(np.sum(np.sum(q[1:] * q[:-1], axis=1) < _OPPOSITE))
        self.turns = self.turns or bool(_tilted(q).any())
        self.flips += flips
        self.episodes += [index] if flips else []
        self.starts.append(q[0])
        return True

    def found(self, dim: int) -> Quaternion | None:
        starts = np.array(self.starts)
        reference = np.linalg.eigh(starts.T @ starts)[1][:, -1]  # the axis that they are nearest to
        sides = starts @ reference
        if (sides < 0).sum() > len(sides) / 2:
            reference, sides = -reference, -sides
        clear = float(np.quantile(np.abs(sides), 0.1)) > _NEAR
        opposed = np.flatnonzero(sides < 0).tolist() if clear else []
        if not self.turns or not (self.flips or opposed):
            return None
        return Quaternion(dim, self.flips, self.episodes, opposed, reference)


class Quaternions:
    """Looks for quaternions, of whatever order, whose sign flips in a column of `size` numbers a frame."""

    def __init__(self, size: int) -> None:
        self._fours = {dim: _Four() for dim in range(size - 3)}

    def add(self, index: int, values: NDArray) -> None:
        """Take the episode `index`, [T, size]."""
        for dim in list(self._fours):
            q = values[:, dim : dim + 4]
            if not self._fours[dim].add(index, q[np.isfinite(q).all(axis=1)]):
                del self._fours[dim]

    @property
    def dims(self) -> set[int]:
        """All dimensions that are part of a quaternion."""
        return {dim + i for dim, four in self._fours.items() if four.turns for i in range(4)}

    def found(self) -> list[Quaternion]:
        """Those whose sign flips between frames or episodes; none shares a dimension with another."""
        found: list[Quaternion] = []
        for dim, four in self._fours.items():
            quaternion = four.found(dim) if four.starts and _apart(dim, found) else None
            found += [quaternion] if quaternion else []
        return found


def steady(q: NDArray, reference: NDArray) -> NDArray:
    """Quaternions [T, 4] of an episode without flips, the first on the side of `reference` [4]."""
    flips = np.sum(q[1:] * q[:-1], axis=1) < 0
    first = q[0] @ reference < 0
    signs = np.where(np.logical_xor.accumulate(np.append(first, flips)), -1.0, 1.0)
    return q * signs[:, None]


def _apart(dim: int, others: Sequence[Quaternion]) -> bool:
    return not others or dim >= others[-1].dim + 4


def _tilted(q: NDArray) -> NDArray[np.bool_]:
    """Which of [T, 4] have two numbers that are not small."""
    tilted: NDArray[np.bool_] = np.sort(np.abs(q), axis=1)[:, -2] > _TILTED
    return tilted
