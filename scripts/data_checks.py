"""What is suspicious in a dataset: one pass over its low-dim columns, findings as sentences."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION
from flowleap.datasets.source import Source

_CLIPPED = (
    0.05  # share of frames at the very smallest or largest value from which a dimension counts as clipped
)
_SWITCH = 0.9  # share of frames at either end from which it is a switch (a gripper), which is neither clipped nor jumps
_JUMP = 0.5  # share of the range within one frame that is a jump ...
_STEADY = 0.2  # ... unless the episodes' largest steps usually exceed this share of it
_GAP = 1.5  # frame periods between two time stamps that make a gap
_SHOWN = 5


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


class Checks:
    """The pass over a dataset.

    Attributes:
        lengths: frames of each episode, int64 [E].
        findings: one sentence each; empty if nothing is suspicious.
    """

    def __init__(self, source: Source) -> None:
        columns = source.columns
        keys = [key for key, column in columns.items() if column.kind == "lowdim"]
        extremes = {key: Extremes(columns[key].size) for key in keys}
        steps: list[NDArray] = []
        not_finite: Counter[str] = Counter()
        first: dict[str, str] = {}
        digests: dict[bytes, list[str]] = {}
        lengths, gaps = [], []
        for index in range(source.n_episodes):
            episode = source.episode(index, keys)
            digest = hashlib.blake2b(digest_size=16)
            for key, values in episode.items():
                flat = values.reshape(len(values), -1).astype(np.float64)
                if bad := int(flat.size - np.isfinite(flat).sum()):
                    not_finite[key] += bad
                    first.setdefault(key, source.label(index))
                extremes[key].add(flat)
                digest.update(values.tobytes())
            action = episode[ACTION].astype(np.float64)
            lengths.append(len(action))
            jumps = np.abs(np.diff(action, axis=0))
            steps.append(jumps.max(axis=0, initial=0.0))
            digests.setdefault(digest.digest(), []).append(source.label(index))
            if _has_gap(source.times(index)):
                gaps.append(source.label(index))
        self.lengths = np.array(lengths, np.int64)
        labels = [source.label(i) for i in range(source.n_episodes)]
        self.findings = [
            *(
                f"'{key}' has {n} NaN or infinite numbers, the first in {first[key]}"
                for key, n in not_finite.items()
            ),
            *_constants(extremes),
            *_actions(extremes[ACTION], np.stack(steps), labels, int(self.lengths.sum())),
            *([f"time stamps with gaps in {len(gaps)} episodes: {_some(gaps)}"] if gaps else []),
            *(
                f"the same low-dim data {len(same)} times: {_some(same)}"
                for same in digests.values()
                if same[1:]
            ),
        ]


def _constants(extremes: dict[str, Extremes]) -> list[str]:
    found = []
    for key, extreme in extremes.items():
        constant = np.flatnonzero(extreme.low == extreme.high)
        if len(constant):
            which = "" if len(extreme.low) == 1 else f" in dimensions {_some([str(i) for i in constant], 8)}"
            found.append(f"'{key}' is constant{which}")
    return found


def _actions(extreme: Extremes, steps: NDArray, labels: list[str], frames: int) -> list[str]:
    """Clipped and jumping dimensions; `steps` [E, A] are the largest steps of each episode."""
    found = []
    for i in range(len(extreme.low)):
        span = extreme.high[i] - extreme.low[i]
        ends = (extreme.at_low[i] + extreme.at_high[i]) / frames
        if not span > 0 or ends > _SWITCH:
            continue
        for count, value in ((extreme.at_low[i], extreme.low[i]), (extreme.at_high[i], extreme.high[i])):
            if count > 1 and count / frames > _CLIPPED:
                found.append(
                    f"action dimension {i} is clipped: {value:.4g} in {100 * count / frames:.0f} % of frames"
                )
        jumping = np.flatnonzero(steps[:, i] > _JUMP * span)
        if len(jumping) and np.median(steps[:, i]) < _STEADY * span:
            where = _some([labels[e] for e in jumping])
            found.append(
                f"action dimension {i} jumps by more than half its range in {len(jumping)} episodes: {where}"
            )
    return found


def _has_gap(times: NDArray | None) -> bool:
    """Whether two neighbouring time stamps are farther apart than frames usually are, or do not increase."""
    if times is None or len(times) < 3:
        return False
    periods = np.diff(times)
    return bool(np.any(periods > _GAP * np.median(periods)) or np.any(periods <= 0))


def _some(names: list[str], shown: int = _SHOWN) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
