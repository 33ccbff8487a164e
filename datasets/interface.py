"""What a dataset is, whatever its format: episodes of columns, and a Spec that says which a policy observes."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowleap.datasets import order, roles
from flowleap.datasets.columns import ACTION, CACHE_BYTES, Columns, Episode, as_stored, vectors
from flowleap.datasets.images import MANY, NoImages, Picture, choose_views, recognise
from flowleap.datasets.windows import Windows
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ObsKey, Spec

MALFORMED: tuple[type[Exception], ...] = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError)
MALFORMED += (RuntimeError, TypeError, ValueError)
"""What reading metadata or data of a wrong shape or type may raise. A file of others is no bug of ours."""

_BLOCK_FRAMES = 64  # images that are converted at a time
_BESIDE = "recorded beside the observations"


class NotFinite(FlowleapError):
    """Numbers are NaN or infinite.

    Attributes:
        bad: column -> the episodes where it has some.
        first: the first of them, for people.
    """

    def __init__(self, dataset: Dataset, bad: Mapping[str, Sequence[int]], first: str) -> None:
        self.bad, self.first = bad, first
        episodes = sorted({index for found in bad.values() for index in found})
        more = f" ({len(episodes)} episodes have such numbers)" if episodes[1:] else ""
        super().__init__(f"{first}{more}; leave out {dataset.leave_out(episodes, list(bad))}")


class Dataset(ABC):
    """Demonstrations. Of files, only metadata is in memory, and one episode at a time.

    Attributes:
        path: file or folder.
        spec: observation keys, action, rate and origin.
        has_spec: whether the Spec was recorded; else it is read off the columns.
        extra: columns that are no observations (rewards, indices of tasks); `action` where it is not float32.
        attrs: JSON-ready facts about the dataset that a Spec has no place for.
        n_episodes: number of episodes.
        refused: columns that cannot be read, and why.
        reasons: why columns of `extra` are no observations, where names (see `roles`) or shapes say so.
        pictures: key -> how its images lie, of those that are converted when they are read.
        lends_images: whether images and points can be trained from as they lie; in other formats they would fill the
            memory.
        stored: column -> its name in the file, where that is another.
        has_action: whether it is known which column holds the actions; else the Spec's are made up.
        must_choose: why no column may be observed, empty if some may; else the Spec's are those of no use.
        lenient: hand out rows that are out of order, which `disorder` tells.
    """

    path: Path
    spec: Spec
    extra: dict[str, ObsKey]
    attrs: dict[str, Any]
    n_episodes: int
    refused: Mapping[str, str] = MappingProxyType({})
    reasons: Mapping[str, str] = MappingProxyType({})
    stored: Mapping[str, str] = MappingProxyType({})
    pictures: Mapping[str, Picture] = MappingProxyType({})
    has_spec = True
    has_action = True
    must_choose = ""
    lenient = False
    lends_images = False
    _ends: NDArray[np.int64] | None = None

    @staticmethod
    def from_arrays(columns: Mapping[str, Any], episode_ends: ArrayLike, spec: Spec | None = None) -> Dataset:
        """Return a dataset of arrays in memory.

        Args:
            columns: key -> [N, *shape], `action` [N, A] among them; images may be `frames.Frames`.
            episode_ends: [E], the frame after each episode's last one.
            spec: the observations; by default all columns but `action` and those whose names say that they are none
                (`roles`), described by shape and dtype.

        Raises:
            FlowleapError: there are no actions. What does not fit the Spec is found by `windows`.
        """
        return _Arrays(columns, episode_ends, spec)

    @abstractmethod
    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode, as they are."""

    def recognise(self, columns: Mapping[str, ObsKey]) -> tuple[dict[str, ObsKey], dict[str, str]]:
        """Find the images among columns that are described as they lie, and set `pictures`.

        Returns:
            All columns as they will be read, and why some have the shape of images and are none.
        """
        found = {key: recognise(key, column, partial(self._sample, key)) for key, column in columns.items()}
        self.pictures = {key: picture for key, picture in found.items() if isinstance(picture, Picture)}
        odd = {k: x for k, x in found.items() if isinstance(x, str) and columns[k].size > MANY}
        return {**columns, **{key: picture.key for key, picture in self.pictures.items()}}, odd

    def _sample(self, key: str) -> NDArray:
        """A few frames [n, *shape] of a column as it lies, from the first, the middle and the last episode."""
        parts: list[NDArray] = [np.empty((0, 1, 1, 1))]
        for index in sorted({0, self.n_episodes // 2, self.n_episodes - 1}):
            with suppress(FlowleapError, *MALFORMED):  # whoever reads the column will hear of it
                values = self._read(index, [key])[key]
                parts.append(values[:: max(1, len(values) // 3)])
        fitting = [part for part in parts[1:] if part.shape[1:] == parts[1].shape[1:]]
        return np.concatenate(fitting) if fitting else parts[0]

    def resize(self, resize: Any = None, crop: Any = None) -> Self:
        """Let the cameras be read cropped and resized, from now on; see `images.choose_views` for the options."""
        observations, pictures = dict(self.spec.observations), dict(self.pictures)
        for key, view in choose_views(self.fields, resize, crop).items():
            obs = self.fields[key]
            picture = pictures.get(key) or Picture(obs, obs)
            obs = replace(obs, shape=(*view.resize, obs.shape[-1]), views=(*obs.views, view))
            pictures[key] = replace(picture, key=obs, views=(*picture.views, view))
            (observations if key in observations else self.extra)[key] = obs
        self.spec, self.pictures = replace(self.spec, observations=observations), pictures
        for cached in ("fields", "trainable"):
            self.__dict__.pop(cached, None)
        return self

    @property
    def keys(self) -> list[str]:
        """Names of the columns, `action` last."""
        return list(self.fields)

    @property
    def unused(self) -> dict[str, str]:
        """Columns that are not observed, and why."""
        beside = {key: self.reasons.get(key, _BESIDE) for key in self.extra if key != ACTION}
        return beside | {key: f"cannot be read: {reason}" for key, reason in self.refused.items()}

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """int64 [E], the frame after each episode's last one."""
        if self._ends is None:
            self.columns([ACTION])
            assert self._ends is not None
        return self._ends

    @property
    def n_frames(self) -> int:
        """Frames of all episodes."""
        return int(self.episode_ends[-1])

    @cached_property
    def trainable(self) -> Spec:
        """The Spec, less images and points that cannot be trained from as they lie (see `lends_images`).

        Raises:
            FlowleapError: nothing else is observed.
        """
        if self.lends_images:
            return self.spec
        lowdim = {key: obs for key, obs in self.spec.observations.items() if obs.kind == "lowdim"}
        if not lowdim:
            remedy = f"`flowleap convert source={self.path} out=NAME.zarr` first"
            raise FlowleapError(f"dataset '{self.path}' holds images or points only: {remedy}")
        return replace(self.spec, observations=lowdim)

    def columns(self, keys: Sequence[str] | None = None, cache_bytes: int = CACHE_BYTES) -> Columns:
        """Read columns of all episodes into memory, key -> [N, *shape]; by default those of `trainable`.

        Args:
            keys: the columns.
            cache_bytes: what images and points of a zarr store may take; larger ones are `Frames` and stay on the disk.

        Raises:
            FlowleapError: see `episode`; or a value is not finite.
        """
        keys = self._wanted(keys)
        episodes = [self.episode(index, keys) for index in range(self.n_episodes)]
        self.check_finite(enumerate(episodes))
        self._ends = np.cumsum([len(episode[keys[0]]) for episode in episodes], dtype=np.int64)
        return {key: np.concatenate([episode[key] for episode in episodes]) for key in keys}

    def check_finite(self, episodes: Iterable[tuple[int, Episode]]) -> None:
        """Raise `NotFinite` if numbers of some episodes are NaN or infinite; name all that must be left out."""
        bad: dict[str, list[int]] = {}
        first = ""
        for index, episode in episodes:
            for key, values in episode.items():
                if values.dtype.kind != "f" or np.isfinite(values).all():
                    continue
                bad.setdefault(key, []).append(index)
                if not first:
                    frame = int(np.argwhere(~np.isfinite(values))[0, 0])
                    first = str(self.error(index, key, f"is not finite at frame {frame}"))
        if bad:
            raise NotFinite(self, bad, first)

    def leave_out(self, episodes: Sequence[int], keys: Sequence[str] = ()) -> str:
        """The options that leave out episodes, or else observed columns, for a message; for every verb.

        What was left out before stays so.
        """
        ways = []
        if 0 < len(set(episodes)) < self.n_episodes:
            ways.append(f"the episodes with drop={_listed(self._numbers(episodes))}")
        if keys and ACTION not in keys and set(self.spec.observations) - set(keys):
            ways.append(f"the column with {self._without(keys)}")
        return ", or ".join(ways) or "nothing (these are all there are), but record again"

    def or_without(self, index: int) -> str:
        """What leaves one episode out, for the end of a message; empty where it is the only one."""
        return f", or leave out {self.leave_out([index])}" if self.n_episodes > 1 else ""

    def _numbers(self, episodes: Iterable[int]) -> list[int]:
        """What the option `drop` calls episodes."""
        return sorted(set(episodes))

    def _without(self, keys: Iterable[str]) -> str:
        """The option `keys` without some columns; in quotes, because a shell has its own use for brackets."""
        return f"'keys=[{','.join(quoted(f'-{key}') for key in keys)}]'"

    def images(self, keys: Sequence[str], cache_bytes: int, episodes: Sequence[int]) -> Columns:
        """Columns of images or points of some episodes, where they are lent; see `columns`."""
        rows = self.rows(episodes)
        return {key: column.take(rows, axis=0) for key, column in self.columns(keys, cache_bytes).items()}

    def rows(self, episodes: Sequence[int]) -> NDArray[np.int64]:
        """The frames of some episodes, one after the other, among those of all."""
        ends = self.episode_ends
        return np.concatenate([np.arange(ends[i - 1] if i else 0, ends[i]) for i in episodes])

    def _wanted(self, keys: Sequence[str] | None) -> list[str]:
        return [*self.trainable.observations, ACTION] if keys is None else list(keys)

    def windows(
        self,
        n_obs_steps: int = 1,
        horizon: int = 1,
        n_action_steps: int = 1,
        image_frames: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> Windows:
        """Return all training windows, one a frame; see `Windows` and `columns` for the arguments."""
        spec = self.trainable.with_window(n_obs_steps, horizon, n_action_steps)
        columns = self.columns([*spec.observations, ACTION], cache_bytes)
        return Windows(columns, self.episode_ends, spec, image_frames)

    def label(self, index: int) -> str:
        """What the format calls the episode, for messages."""
        return f"episode {index}"

    def seed(self, index: int) -> int | None:
        """The seed that an episode was recorded with, None if unknown."""
        return None

    def scene(self, index: int) -> str | None:
        """The simulator's description of the episode's scene (robomimic's `model_file`), None if there is none."""
        return None

    def times(self, index: int) -> NDArray | None:
        """Time stamps of the frames, [T] seconds, from a column of that name; None if there is none."""
        key = order.first_of(order.TIMES, self.fields)
        return None if key is None else self._read(index, [key])[key].reshape(-1)

    def disorder(self, index: int) -> str | None:
        """Which column says that rows of an episode are out of order or there twice, and where; None if none does."""
        found = self._read(index, self._ordering) if self._ordering else {}
        problems = ((key, order.problem(values)) for key, values in found.items())
        return next((f"'{key}' {problem}" for key, problem in problems if problem), None)

    @cached_property
    def _ordering(self) -> list[str]:
        """Columns that increase from row to row."""
        return order.ordering(self.fields)

    def close(self) -> None:  # noqa: B027, most sources hold no file open
        """Release files."""

    @cached_property
    def fields(self) -> dict[str, ObsKey]:
        """All columns and what a frame of them is: observations, then the extra ones, `action` last."""
        action = {ACTION: self.extra.get(ACTION, ObsKey((self.spec.action_dim,)))} if self.has_action else {}
        return self.spec.observations | {k: v for k, v in self.extra.items() if k != ACTION} | action

    def episode(self, index: int, keys: Sequence[str] | None = None) -> Episode:
        """Read one episode, key -> [T, *shape]; all columns by default.

        Raises:
            FlowleapError: a key is unknown, or a column is missing, damaged, of another shape than in the other
                episodes or of another length than its neighbours; the message names file, episode and key.
        """
        if not -self.n_episodes <= index < self.n_episodes:
            raise FlowleapError(f"dataset '{self.path}' has episodes 0 to {self.n_episodes - 1}, not {index}")
        index %= self.n_episodes
        keys = list(self.fields) if keys is None else list(keys)
        for key in keys:
            if key not in self.fields:
                known = f"{', '.join(self.fields)}{suggest(key, self.fields)}"
                raise FlowleapError(f"'{self.path}' has no column '{key}', only {known}")
        try:
            problem = None if self.lenient else self.disorder(index)
            columns = self._read(index, keys)
        except MALFORMED as error:  # what a reader did not foresee in a file of others
            reason = f"{type(error).__name__}: {error}"
            raise FlowleapError(f"'{self.path}', {self.label(index)} is damaged ({reason})") from error
        if problem is not None:
            raise FlowleapError(
                f"'{self.path}', {self.label(index)}: {problem}; repair the rows{self.or_without(index)}"
            )
        if ACTION in keys:
            columns[ACTION] = vectors(columns[ACTION])
        length = len(columns[keys[0]])
        for key in keys:
            values, picture = columns[key], self.pictures.get(key)
            shape = picture.stored.shape if picture else self.fields[key].shape
            if values.shape[1:] != shape:
                wrong = f"has shape {values.shape[1:]} a frame, {shape} in the episodes before"
                raise self.error(index, key, wrong)
            if len(values) != length:
                raise self.error(index, key, f"has {len(values)} frames, '{keys[0]}' has {length}")
            columns[key] = (
                self._in_dtype(index, key, values)
                if picture is None
                else self.picture(key, values, self.label(index))
            )
        if length < 1:
            raise self.error(index, keys[0], "has no frames")
        return columns

    def picture(self, key: str, frames: NDArray, where: str) -> NDArray:
        """Frames of a column as they lie -> as they are read; raise naming the column, and `where` in the dataset."""
        try:
            return self.pictures[key](frames) if key in self.pictures else frames
        except FlowleapError as error:
            remedy = f"leave it out with keys=[-{key}], or repair it"
            raise NoImages(f"'{self.path}', {where}: '{key}' {error}", remedy) from error

    def _in_dtype(self, index: int, key: str, values: NDArray) -> NDArray:
        """Return a column in the dataset's dtype; raise where that could change a value."""
        dtype = np.dtype(self.fields[key].dtype).newbyteorder("=")
        if values.dtype == dtype:
            return values
        rounded = values.dtype.kind in "iu" and dtype.kind == "f" and values.dtype.itemsize >= dtype.itemsize
        if rounded or not np.can_cast(values.dtype, dtype, "safe"):  # numpy calls int64 to float64 safe
            problem = f"has dtype {values.dtype}, {dtype} in the episodes before: write one"
            raise self.error(index, key, problem)
        return values.astype(dtype)

    def error(self, index: int, key: str, problem: str) -> FlowleapError:
        """Return an error that names file, episode and key."""
        return FlowleapError(f"'{self.path}', {self.label(index)}: '{key}' {problem}")

    def fingerprint(self) -> str:
        """A text that changes when the files change: path, and count, bytes and last change of the files."""
        files = [p for p in self.path.rglob("*") if p.is_file()] if self.path.is_dir() else [self.path]
        stats = [file.stat() for file in files]
        size, latest = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
        return json.dumps([os.path.abspath(self.path), len(files), size, latest])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_LISTED = 30  # episodes of an option that are named one by one


def _listed(numbers: Sequence[int]) -> str:
    """Numbers of episodes as the option `drop` takes them: a list, or, where it would be long, slices."""
    if len(numbers) <= _LISTED:
        return f"[{','.join(map(str, numbers))}]"
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    pieces = [f"{run[0]}:{run[-1] + 1}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return f"\"'{','.join(pieces)}'\""  # the inner quotes are for the grammar of options, the outer ones for the shell


def quoted(word: str) -> str:
    """A word of a list on the command line, in quotes if its grammar needs them."""
    if re.fullmatch(r"-?[^\W\d][\w./*-]*", word):  # `-0` would be read as the number 0
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Arrays(Dataset):
    """Columns in memory."""

    lends_images = True

    def __init__(self, columns: Mapping[str, Any], episode_ends: ArrayLike, spec: Spec | None) -> None:
        if ACTION not in columns:
            raise FlowleapError(f"no column '{ACTION}' among {sorted(columns)}{suggest(ACTION, columns)}")
        self.path, self.extra, self.attrs, self._columns = Path("arrays"), {}, {}, columns
        self.has_spec = spec is not None
        self._ends = np.asarray(episode_ends, np.int64)
        self.n_episodes = len(self._ends)
        self._views: dict[str, tuple[Picture, NDArray]] = {}  # images as they were read last
        if spec is None:
            lie = {key: as_stored(x.shape[1:], x.dtype) for key, x in columns.items() if key != ACTION}
            observed, self.extra, self.reasons = roles.split(*self.recognise(lie))
            spec = Spec(observed, action_dim=columns[ACTION].shape[-1])
        self.spec = spec

    def columns(self, keys: Sequence[str] | None = None, cache_bytes: int = CACHE_BYTES) -> Columns:
        """Return columns, key -> [N, *shape]; by default all."""
        return {key: self._column(key) for key in (self._columns if keys is None else keys)}

    def _column(self, key: str) -> Any:
        """A column; images that were recorded in another layout are converted once."""
        stored, picture = self._columns[key], self.pictures.get(key)
        if picture is None or (picture.summary() is None and not picture.views):
            return stored
        if key not in self._views or self._views[key][0] is not picture:
            self._views[key] = picture, self._converted(key, np.arange(len(stored)))
        return self._views[key][1]

    def images(self, keys: Sequence[str], cache_bytes: int, episodes: Sequence[int]) -> Columns:
        """Image columns of some episodes; what the others hold is not looked at."""
        rows = self.rows(episodes)
        return {
            key: self._converted(key, rows) if key in self.pictures else self._columns[key].take(rows, axis=0)
            for key in keys
        }

    def _converted(self, key: str, rows: NDArray[np.int64]) -> NDArray:
        """Some frames of a column of images as they are read."""
        obs = self.pictures[key].key
        read = np.empty((len(rows), *obs.shape), obs.dtype)
        for part in np.array_split(np.arange(len(rows)), -(-len(rows) // _BLOCK_FRAMES)):
            frames = self._columns[key].take(rows[part], axis=0)
            read[part] = self.picture(key, frames, f"frames from {rows[part[0]]}")
        return read

    def _in_dtype(self, index: int, key: str, values: NDArray) -> NDArray:
        return values

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        assert self._ends is not None
        rows = np.arange(self._ends[index - 1] if index else 0, self._ends[index])
        return {key: self._columns[key].take(rows, axis=0) for key in keys}
