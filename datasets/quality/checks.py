"""What is suspicious in a dataset: one pass over its low-dim columns, findings as sentences with remedies."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION
from flowleap.datasets.interface import Dataset

_CLIPPED = 0.05  # share of frames at the smallest or largest value from which a dimension counts as clipped
_SWITCH = 0.9  # share of frames at either end from which it is a switch (a gripper), which is neither clipped nor jumps
_JUMP = 0.5  # share of the range within one frame that is a jump ...
_STEADY = 0.2  # ... unless the episodes' largest steps usually exceed this share of it
_GAP = 1.5  # frame periods between two time stamps that make a gap
_RATE = 0.1  # share by which the rate of the time stamps may differ from the Spec's
_SHOWN = 5
_CLIPPED_REMEDY = (
    "widen the limits of the recorder if it cut the commands off; if the robot has this limit, all is well"
)
_JUMP_REMEDY = (
    "look at one (flowleap view ... episode={}): "
    "an angle that wraps wants its sine and cosine, a lost frame a cut"
)


class Finding(NamedTuple):
    """What is suspicious, and what to do about it."""

    problem: str
    remedy: str


def grouped(findings: Sequence[Finding]) -> list[tuple[list[str], str]]:
    """Put problems with the same remedy together: (problems, remedy), in the order of their first ones."""
    remedies = dict.fromkeys(f.remedy for f in findings)
    return [([f.problem for f in findings if f.remedy == remedy], remedy) for remedy in remedies]


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
        extremes: the range of each low-dim column.
        not_finite: how many numbers of each column are NaN or infinite.
        measured_hz: frames per second by the time stamps; 0 without any.
        findings: empty if nothing is suspicious.
        suspects: episodes that a finding names, in the order of the findings.
    """

    def __init__(self, source: Dataset) -> None:
        columns = source.fields
        keys = [key for key, column in columns.items() if column.kind == "lowdim"]
        self.extremes = {key: Extremes(columns[key].size) for key in keys}
        self.not_finite: Counter[str] = Counter()
        steps: list[NDArray] = []
        first: dict[str, int] = {}
        digests: dict[bytes, list[int]] = {}
        lengths, gaps = [], []
        periods: dict[int, float] = {}  # of the episodes with time stamps: seconds from frame to frame
        disorders: list[tuple[int, str]] = []
        for index in range(source.n_episodes):
            episode = source.episode(index, keys)
            digest = hashlib.blake2b(digest_size=16)
            for key, values in episode.items():
                flat = values.reshape(len(values), -1).astype(np.float64)
                if bad := int(flat.size - np.isfinite(flat).sum()):
                    self.not_finite[key] += bad
                    first.setdefault(key, index)
                self.extremes[key].add(flat)
                digest.update(values.tobytes())
            action = episode[ACTION].astype(np.float64)
            lengths.append(len(action))
            with np.errstate(invalid="ignore"):  # infinite actions are counted above
                jumps = np.abs(np.diff(action, axis=0))
            steps.append(jumps.max(axis=0, initial=0.0))
            digests.setdefault(digest.digest(), []).append(index)
            times = source.times(index)
            if problem := source.disorder(index):
                disorders.append((index, problem))
            elif _has_gap(times):
                gaps.append(index)
            if times is not None and len(times) > 1:
                periods[index] = float(np.median(np.diff(times)))
        period = float(np.median(list(periods.values()))) if periods else 0.0
        self.measured_hz = 1.0 / period if period > 0 else 0.0
        self.lengths = np.array(lengths, np.int64)
        self.suspects: list[int] = []
        self._source = source
        self.findings = [
            *(self._not_finite(key, count, first[key]) for key, count in self.not_finite.items()),
            *_constants(self.extremes),
            *self._actions(self.extremes[ACTION], np.stack(steps)),
            *self._disorder(disorders),
            *self._times(gaps, [i for i, own in periods.items() if abs(own - period) > _RATE * period > 0]),
            *(self._copies(same) for same in digests.values() if same[1:]),
        ]

    def _name(self, episodes: Sequence[int]) -> str:
        """Name episodes in a message, and remember them."""
        self.suspects += episodes[:_SHOWN]
        return some([self._source.label(index) for index in episodes])

    def _not_finite(self, key: str, count: int, first: int) -> Finding:
        problem = f"'{key}' has {count} NaN or infinite numbers, the first in {self._name([first])}"
        return Finding(
            problem, "training refuses them: repair the values, or leave out these episodes or this key"
        )

    def _copies(self, same: list[int]) -> Finding:
        remedy = "keep one of them: copies weigh more in training, and a split may put them on both sides"
        return Finding(f"the same low-dim data {len(same)} times: {self._name(same)}", remedy)

    def _disorder(self, found: list[tuple[int, str]]) -> list[Finding]:
        """Rows that are out of order or there twice; `found` is episode and problem."""
        if not found:
            return []
        named = self._name([index for index, _ in found])
        problem = (
            f"rows out of order or doubled in {len(found)} episodes: {named}; in the first, {found[0][1]}"
        )
        remedy = (
            f"training refuses them: repair the rows, or drop=[{','.join(str(index) for index, _ in found)}]"
        )
        return [Finding(problem, remedy)]

    def _times(self, gaps: list[int], odd: list[int]) -> list[Finding]:
        """Gaps between time stamps, episodes of a rate of their own, and a rate other than the Spec's."""
        found = []
        if gaps:
            remedy = "frames were lost: split these episodes there, or resample them to a steady rate"
            found.append(
                Finding(f"time stamps with gaps in {len(gaps)} episodes: {self._name(gaps)}", remedy)
            )
        if odd:
            problem = (
                f"time stamps of another rate than in the other episodes in {len(odd)}: {self._name(odd)}"
            )
            found.append(Finding(problem, "resample these episodes, or leave them out with drop=[...]"))
        stated, measured = self._source.spec.control_hz, self.measured_hz
        if stated and measured and abs(measured / stated - 1) > _RATE:
            problem = f"the time stamps say {measured:.4g} Hz, the Spec says {stated:.4g} Hz"
            found.append(
                Finding(problem, f"correct the Spec: flowleap convert ... control_hz={measured:.4g}")
            )
        return found

    def _actions(self, extreme: Extremes, steps: NDArray) -> list[Finding]:
        """Clipped and jumping dimensions; `steps` [E, A] are the largest steps of each episode."""
        found, frames = [], int(self.lengths.sum())
        for i in range(len(extreme.low)):
            span = extreme.high[i] - extreme.low[i]
            ends = (extreme.at_low[i] + extreme.at_high[i]) / frames
            if not span > 0 or ends > _SWITCH:
                continue
            name = f"action dimension {i}"
            for count, value in ((extreme.at_low[i], extreme.low[i]), (extreme.at_high[i], extreme.high[i])):
                if count > 1 and count / frames > _CLIPPED:
                    problem = f"{name} is clipped: {value:.4g} in {100 * count / frames:.0f} % of frames"
                    found.append(Finding(problem, _CLIPPED_REMEDY))
            jumping = np.flatnonzero(steps[:, i] > _JUMP * span)
            if len(jumping) and np.median(steps[:, i]) < _STEADY * span:
                named = self._name(jumping.tolist())
                problem = f"{name} jumps by more than half its range in {len(jumping)} episodes: {named}"
                found.append(Finding(problem, _JUMP_REMEDY.format(jumping[0])))
        return found


def _constants(extremes: dict[str, Extremes]) -> list[Finding]:
    found = []
    for key, extreme in extremes.items():
        constant = np.flatnonzero(extreme.low == extreme.high)
        if len(constant):
            which = "" if len(extreme.low) == 1 else f" in dimensions {some([str(i) for i in constant], 8)}"
            remedy = "it tells the policy nothing; check its sensor, or leave the key out (flowleap convert keys=[...])"
            if key == ACTION:
                remedy = "the policy will repeat this number; record again if the joint was meant to move"
            found.append(Finding(f"'{key}' is constant{which}", remedy))
    return found


def _has_gap(times: NDArray | None) -> bool:
    """Whether two neighbouring time stamps are farther apart than frames usually are."""
    if times is None or len(times) < 3:
        return False
    periods = np.diff(times)
    return bool(np.any(periods > _GAP * np.median(periods)))


def some(names: Sequence[str], shown: int = _SHOWN) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
