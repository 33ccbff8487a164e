"""What `flowleap convert fix=[...]` repairs of what the checks find, episode by episode.

    angles        angles that wrap go on beyond the end of their range
    quaternions   signs do not flip within an episode, and episodes begin on the same side
    idle          idle stretches are cut to one frame
    shift         each action is taken from a later frame, so that it is where the robot is one frame on

A policy sees on the robot what it saw in training: what `facts` says belongs into the code that feeds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode
from flowleap.datasets.interface import Dataset
from flowleap.datasets.quality.angles import Quaternion, Wrap, steady, unwrapped
from flowleap.datasets.quality.stillness import Motion
from flowleap.datasets.quality.survey import ColumnSurvey
from flowleap.datasets.quality.timing import Shifts, shift_of
from flowleap.policy.core.errors import FlowleapError, suggest

FIXES = ("angles", "quaternions", "idle", "shift")


class Repairs:
    """The repairs of a dataset: looks at all low-dim columns once, then changes episodes.

    Args:
        source: the dataset.
        names: some of `FIXES`.
        keys: the columns that are read; those observed and the actions are looked at.

    Attributes:
        facts: JSON-ready, what is changed and how.

    Raises:
        FlowleapError: an unknown name, or one for which there is nothing to do.
    """

    def __init__(self, source: Dataset, names: Sequence[str], keys: Sequence[str]) -> None:
        for name in names:
            if name not in FIXES:
                raise FlowleapError(f"fix={name} is none of {', '.join(FIXES)}{suggest(name, FIXES)}")
        lowdim = [key for key, obs in source.spec.observations.items() if obs.kind == "lowdim"]
        observed = [key for key in lowdim if key in keys]
        sizes = {key: source.fields[key].size for key in (*observed, ACTION)}
        survey = {key: ColumnSurvey(size) for key, size in sizes.items()}
        shifts = Shifts({key: sizes[key] for key in observed}, sizes[ACTION], source.n_episodes)
        lengths: list[int] = []
        for index in range(source.n_episodes):
            episode = {k: flat(v) for k, v in source.episode(index, list(sizes)).items()}
            shifts.add(index, episode)
            lengths.append(len(episode[ACTION]))
            for key, values in episode.items():
                survey[key].add(index, values)
        self._wraps = {k: s.wraps() for k, s in survey.items()} if "angles" in names else {}
        self._quaternions = {k: s.quaternions() for k, s in survey.items()} if "quaternions" in names else {}
        self._shift = shift_of(shifts.found(survey[ACTION].switches)) if "shift" in names else 0
        if short := [index for index, length in enumerate(lengths) if length <= self._shift]:
            problem = f"fix=shift: episodes have {self._shift} frames or fewer"
            raise FlowleapError(f"{problem}, leave out {source.leave_out(short)}")
        self._motion = Motion(survey, list(sizes)) if "idle" in names else None
        self.facts = self._facts()
        for name in names:
            if name != "idle" and name not in self.facts:
                raise FlowleapError(
                    f"fix={name}: '{source.path}' has nothing of that to repair, leave it out"
                )

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for key, wraps in self._wraps.items():
            for w in wraps:
                fact = {"key": key, "dimension": w.dim, "period": w.period, "begins_around": w.reference}
                facts.setdefault("angles", []).append(fact)
        for key, quaternions in self._quaternions.items():
            for q in quaternions:
                fact = {"key": key, "dimensions": [q.dim, q.dim + 3], "begins_around": q.reference.tolist()}
                facts.setdefault("quaternions", []).append(fact)
        if self._shift > 0:
            facts["shift"] = self._shift
        if self._motion:
            facts["idle"] = "cut"
        return facts

    def __call__(self, episode: Mapping[str, NDArray]) -> Episode:
        """The repaired columns of an episode, key -> [T', ...]."""
        columns = dict(episode)
        for key in columns.keys() & (self._wraps.keys() | self._quaternions.keys()):
            columns[key] = _turned(columns[key], self._wraps.get(key, ()), self._quaternions.get(key, ()))
        if self._motion:
            columns = self._motion.without_stretches(columns)
        if (n := self._shift) > 0:
            columns = {key: v[n:] if key == ACTION else v[:-n] for key, v in columns.items()}
        return columns


def _turned(column: NDArray, wraps: Iterable[Wrap], quaternions: Iterable[Quaternion]) -> NDArray:
    """A column [T, ...] without wraps and flips, in its dtype."""
    values = flat(column)
    for w in wraps:
        values[:, w.dim] = unwrapped(values[:, w.dim], w.period, w.reference)
    for q in quaternions:
        four = slice(q.dim, q.dim + 4)
        values[:, four] = steady(values[:, four], q.reference)
    return values.reshape(column.shape).astype(column.dtype)


def flat(values: NDArray) -> NDArray:
    """A column [T, ...] as float64 [T, size], a copy."""
    return values.reshape(len(values), -1).astype(np.float64)
