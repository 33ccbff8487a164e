"""Whether actions and columns belong to their frames: actions that are shifted in time, columns that are clocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION

_LAGS = 8  # frames, before and after, that are compared
_EPISODES = 50  # that are looked at, spread evenly
_DIMS = 128  # numbers of the observations that are looked at
_FOLLOWS = (
    0.01  # mean square difference, as a share of the action's variance, below which the two are the same
)
_SHARP = (
    0.1  # ... and it is less than this share of the difference one frame earlier and later: the lag is clear
)
_EXACT = 1e-4  # the same where a robot that lags behind its commands would have such a shift, too

_STEADY = 0.5  # steps of a clock differ from their median by less than this share of it
_SAME_STEP = 0.1  # share by which the median steps of two episodes may differ


class Match(NamedTuple):
    """An action dimension that is an observed one, `lag` frames later: action[t] is obs[t + lag]."""

    dim: int
    key: str
    obs_dim: int
    lag: int
    exact: bool


class Shifts:
    """Compares actions with low-dim observations of neighbouring frames.

    Args:
        sizes: observed key -> numbers a frame.
        n_actions: numbers of an action.
        n_episodes: of the dataset.
    """

    def __init__(self, sizes: Mapping[str, int], n_actions: int, n_episodes: int) -> None:
        self._names = [(key, dim) for key, size in sizes.items() for dim in range(size)][:_DIMS]
        self._keys = list(dict.fromkeys(key for key, _ in self._names))
        self._every = -(-n_episodes // _EPISODES)
        lags, dims = 2 * _LAGS + 1, len(self._names)
        self._errors = np.zeros((lags, n_actions, dims))
        self._largest = np.zeros((n_actions, dims))  # difference within a frame
        self._sums, self._squares, self._frames = np.zeros(n_actions), np.zeros(n_actions), 0
        self._offset: NDArray | None = None

    def add(self, index: int, episode: Mapping[str, NDArray]) -> None:
        """Take the episode `index`, key -> float64 [T, size]."""
        action = episode[ACTION]
        if index % self._every or len(action) <= 2 * _LAGS or not self._names:
            return
        obs = np.concatenate([episode[key] for key in self._keys], axis=1)[:, : len(self._names)]
        finite = np.isfinite(action).all() and np.isfinite(obs).all()
        if not finite:
            return
        inner = action[_LAGS:-_LAGS]
        if self._offset is None:
            self._offset = inner[0]
        self._sums += (inner - self._offset).sum(axis=0)
        self._squares += np.square(inner - self._offset).sum(axis=0)
        self._frames += len(inner)
        for lag in range(2 * _LAGS + 1):
            part = obs[lag : lag + len(inner)]
            for dim, values in enumerate(inner.T):
                self._errors[lag, dim] += np.square(part - values[:, None]).sum(axis=0)
        for dim, values in enumerate(action.T):
            apart = np.abs(obs - values[:, None]).max(axis=0)
            self._largest[dim] = np.maximum(self._largest[dim], apart)

    def found(self, switches: NDArray[np.bool_]) -> list[Match]:
        """The action dimensions that an observation repeats at another time than the next frame.

        `switches` [A] are left out: a gripper's few changes say little about time.
        """
        if not self._frames:
            return []
        n = self._frames
        variance = self._squares / n - np.square(self._sums / n)
        found = []
        for dim in np.flatnonzero((variance > 1e-12 * self._squares / n) & ~switches).tolist():
            errors = self._errors[:, dim] / n / variance[dim]
            lag, obs_dim = (int(i) for i in np.unravel_index(np.argmin(errors), errors.shape))
            best, around = errors[lag, obs_dim], errors[[max(lag - 1, 0), min(lag + 1, 2 * _LAGS)], obs_dim]
            beside = around[around > best].min(initial=np.inf)
            clear = _EXACT if lag > _LAGS else _SHARP
            if best < _FOLLOWS and np.isfinite(beside) and best <= clear * beside and lag != _LAGS + 1:
                exact = lag == _LAGS and self._largest[dim, obs_dim] == 0
                found.append(Match(dim, *self._names[obs_dim], lag - _LAGS, exact))
        return found


def shift_of(matches: Sequence[Match]) -> int:
    """By how many frames actions must be taken later so that each is the observation of the next frame."""
    lags = [match.lag for match in matches]
    return 1 - max(set(lags), key=lags.count) if lags else 0


class Clocks:
    """Looks for columns that are a frame counter or a time.

    Args:
        keys: the columns to look at.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._steps: dict[str, list[NDArray]] = {key: [] for key in keys}
        self._ends: dict[str, list[NDArray]] = {key: [] for key in keys}

    def add(self, episode: Mapping[str, NDArray]) -> None:
        """Take the next episode, key -> float64 [T, size]."""
        for key in list(self._steps):
            values = episode[key]
            if len(values) < 3:
                continue
            steps = np.diff(values, axis=0)
            usual = np.median(steps, axis=0)
            if np.all(np.abs(steps - usual) < _STEADY * np.abs(usual)):  # false for steps of 0 and NaN
                self._steps[key].append(usual)
                self._ends[key].append(values[[0, -1]])
            else:
                del self._steps[key]

    def found(self) -> list[str]:
        """Columns that go up, or down, by the same step in every frame, or from the same start to the same end."""
        found = []
        for key, steps in self._steps.items():
            if len(steps) < 2:  # one episode is too little to tell
                continue
            usual = np.median(steps, axis=0)
            same_step = np.all(np.abs(steps - usual) <= _SAME_STEP * np.abs(usual))
            same_ends = np.allclose(self._ends[key], self._ends[key][0])
            if same_step or same_ends:
                found.append(key)
        return found
