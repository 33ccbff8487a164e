"""A dataset of any format, opened for reading one episode at a time."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ObsKey, Spec

MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What reading metadata or data of a wrong shape or type may raise. A file of others is no bug of ours."""

_TIMES = ("timestamp", "timestamps", "time")


class Source(ABC):
    """Demonstrations behind one of the formats. Only metadata is in memory, and one episode at a time.

    Attributes:
        path: file or folder.
        spec: observation keys, action, rate and origin.
        extra: columns that are no observations (rewards, indices of tasks); `action` where it is not float32.
        attrs: JSON-ready facts about the dataset that a Spec has no place for.
        n_episodes: number of episodes.
        refused: columns that cannot be read, and why.
    """

    path: Path
    spec: Spec
    extra: dict[str, ObsKey]
    attrs: dict[str, Any]
    n_episodes: int
    refused: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode, as they are."""

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
        key = next((key for key in _TIMES if key in self.columns and self.columns[key].size == 1), None)
        return None if key is None else self.read(index, [key])[key].reshape(-1)

    def close(self) -> None:  # noqa: B027, most sources hold no file open
        """Release files."""

    @cached_property
    def columns(self) -> dict[str, ObsKey]:
        """All columns: observations, then the extra ones, `action` last."""
        action = {ACTION: self.extra.get(ACTION, ObsKey((self.spec.action_dim,)))}
        return self.spec.observations | {k: v for k, v in self.extra.items() if k != ACTION} | action

    def episode(self, index: int, keys: Sequence[str] | None = None) -> Episode:
        """Read one episode, key -> [T, *shape]; all columns by default.

        Raises:
            FlowleapError: a key is unknown, or a column is missing, damaged, of another shape than in the other
                episodes or of another length than its neighbours; the message names file, episode and key.
        """
        keys = list(self.columns) if keys is None else list(keys)
        for key in keys:
            if key not in self.columns:
                known = ", ".join(self.columns)
                raise FlowleapError(
                    f"'{self.path}' has no column '{key}', only {known}{suggest(key, self.columns)}"
                )
        try:
            columns = self.read(index, keys)
        except MALFORMED as error:  # what a reader did not foresee in a file of others
            raise FlowleapError(
                f"'{self.path}', {self.label(index)} is damaged ({type(error).__name__}: {error})"
            ) from error
        length = len(columns[keys[0]])
        for key in keys:
            values, shape = columns[key], self.columns[key].shape
            if values.shape[1:] != shape:
                raise self.error(
                    index, key, f"has shape {values.shape[1:]} a frame, {shape} in the episodes before"
                )
            if len(values) != length:
                raise self.error(index, key, f"has {len(values)} frames, '{keys[0]}' has {length}")
            columns[key] = self._in_dtype(index, key, values)
        if length < 1:
            raise self.error(index, keys[0], "has no frames")
        return columns

    def _in_dtype(self, index: int, key: str, values: NDArray) -> NDArray:
        """Return a column in the dataset's dtype; raise where that could change a value (images: see `to_uint8`)."""
        dtype = np.dtype(self.columns[key].dtype)
        if values.dtype == dtype or self.columns[key].kind == "rgb":
            return values
        rounded = values.dtype.kind in "iu" and dtype.kind == "f" and values.dtype.itemsize >= dtype.itemsize
        if rounded or not np.can_cast(values.dtype, dtype, "safe"):  # numpy calls int64 to float64 safe
            raise self.error(
                index, key, f"has dtype {values.dtype}, {dtype} in the episodes before: write one"
            )
        return values.astype(dtype)

    def error(self, index: int, key: str, problem: str) -> FlowleapError:
        """Return an error that names file, episode and key."""
        return FlowleapError(f"'{self.path}', {self.label(index)}: '{key}' {problem}")

    def fingerprint(self) -> str:
        """A text that changes when the files change: path, and count, bytes and last change of the files."""
        files = [p for p in self.path.rglob("*") if p.is_file()] if self.path.is_dir() else [self.path]
        stats = [file.stat() for file in files]
        latest = max((s.st_mtime_ns for s in stats), default=0)
        size = sum(s.st_size for s in stats)
        return json.dumps([os.path.abspath(self.path), len(files), size, latest])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_columns(source: Source, keys: Sequence[str]) -> tuple[Episode, NDArray[np.int64]]:
    """Read columns of all episodes into memory: key -> [N, *shape], and the episode ends [E].

    Raises:
        FlowleapError: see `Source.episode`; or a value is not finite.
    """
    parts: dict[str, list[NDArray]] = {key: [] for key in keys}
    lengths = []
    for index in range(source.n_episodes):
        columns = source.episode(index, keys)
        for key, values in columns.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                frame = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise source.error(index, key, f"is not finite at frame {frame}")
            parts[key].append(values)
        lengths.append(len(columns[keys[0]]))
    return {key: np.concatenate(values) for key, values in parts.items()}, np.cumsum(lengths, dtype=np.int64)
