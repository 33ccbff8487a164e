"""Where nothing happens: idle stretches, episodes that hardly move, and commands that are zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION
from flowleap.datasets.quality.survey import Survey

STILL = 0.01  # share of its usual motion in an episode that no dimension leaves in an idle stretch
_LEAST = 10  # frames of the shortest stretch that counts ...
_LONG = 0.1  # ... and its least share of the episode
_HARDLY = 0.05  # share of the usual motion in which an episode hardly moves
_FEW = 0.25  # share of the action's dimensions that move in an episode in which only a gripper does ...
_MANY = 0.5  # ... where usually more than this share of them move


class Motion:
    """Scales [T, size] columns of an episode by how far each dimension usually moves.

    Args:
        survey: the pass over the dataset.
        keys: the observed low-dim keys and the action.
    """

    def __init__(self, survey: Survey, keys: Sequence[str]) -> None:
        self._scales = {key: survey[key].scale for key in keys}
        self._moving = {key: scale > 0 for key, scale in self._scales.items()}

    def stretches(self, episode: Mapping[str, NDArray]) -> list[tuple[int, int]]:
        """Where nothing moves for long: [first, last), of an episode key -> [T, ...]; it may be all of it."""
        parts = []
        for key, moving in self._moving.items():
            values = episode[key].reshape(len(episode[key]), -1)[:, moving]
            parts.append(values.astype(np.float64) / self._scales[key][moving])
        motion = np.concatenate(parts, axis=1)
        return _still(motion, max(_LEAST, round(_LONG * len(motion)))) if motion.shape[1] else []

    def without_stretches(self, episode: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The episode without all frames but one of each idle stretch; one that never moves is left alone."""
        columns = dict(episode)
        while stretches := [s for s in self.stretches(columns) if s[1] - s[0] < len(columns[ACTION])]:
            keep = np.ones(len(columns[ACTION]), bool)
            for first, last in stretches:
                keep[first:last] = False
                keep[last - 1 if first == 0 else first] = True  # the first one ends when the robot sets off
            columns = {key: values[keep] for key, values in columns.items()}
        return columns


def _still(motion: NDArray, least: int) -> list[tuple[int, int]]:
    """Stretches [first, last) of at least `least` frames in which [T, size] stays within `STILL`."""
    found, start = [], 0
    returns = np.abs(motion[least - 1 :] - motion[: max(len(motion) - least + 1, 0)]).max(axis=1) <= STILL
    for first in np.flatnonzero(returns).tolist():
        if first < start or np.ptp(motion[first : first + least], axis=0).max() > STILL:
            continue
        rest = motion[first:]
        extent = np.maximum.accumulate(rest) - np.minimum.accumulate(rest)
        left = np.flatnonzero(extent.max(axis=1) > STILL)
        start = first + int(left[0]) if len(left) else len(motion)
        found.append((first, start))
    return found


def hardly_moving(survey: Survey, keys: Sequence[str]) -> list[int]:
    """Episodes in which no dimension moves as usual."""
    scales = {key: survey[key].scale for key in keys if np.any(survey[key].scale > 0)}
    moved = [_moved(survey, key, scale).any(axis=1) for key, scale in scales.items()]
    return np.flatnonzero(~np.any(moved, axis=0)).tolist() if moved else []


def gripper_only(survey: Survey) -> list[int]:
    """Episodes in which a few dimensions of the action move where usually most do."""
    column = survey[ACTION]
    extent = column.extremes.high - column.extremes.low
    dims = len(extent)
    moved = _moved(survey, ACTION, np.where(column.scale > 0, column.scale, extent)).sum(axis=1)
    if np.median(moved) <= max(_MANY * dims, 2):
        return []
    return np.flatnonzero((moved > 0) & (moved <= max(_FEW * dims, 1))).tolist()


def _moved(survey: Survey, key: str, scale: NDArray) -> NDArray[np.bool_]:
    """Which dimensions move in which episodes, [E, size]; what is not finite counts as motion."""
    moved: NDArray[np.bool_] = (scale > 0) & ~(survey[key].spans <= _HARDLY * scale)
    return moved


def zero_frames(action: NDArray, moving: NDArray[np.bool_]) -> int:
    """Frames of [T, A] in stretches of at least `_LEAST` in which all `moving` dimensions command exactly 0."""
    zero = np.concatenate(([False], (action[:, moving] == 0).all(axis=1), [False]))
    edges = np.flatnonzero(zero[1:] != zero[:-1]).reshape(-1, 2)
    lengths = edges[:, 1] - edges[:, 0]
    return int(lengths[lengths >= _LEAST].sum())
