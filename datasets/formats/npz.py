"""numpy: one .npz with flat arrays [N, ...] and episode_ends, or a folder with one .npz an episode

Arrays called `action` or `actions` are the actions, `reward(s)`, `done(s)`, `terminals`, `timeouts` are extra columns,
all others observations. In a flat file, arrays with one row an episode are extra columns that repeat it over the
episode's frames, and arrays with neither are left out. Nothing is unpickled.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode, flat_names, infer_key, require_memory
from flowleap.datasets.dataset import Dataset
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import Spec

_ENDS = "episode_ends"
_ACTIONS = (ACTION, "actions")
_DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
_EXTRA = {"reward", "rewards", "done", "dones", "terminals", "timeouts"}


def detect(path: Path) -> bool:
    """A `.npz` file, or a folder with such files."""
    return path.suffix == ".npz" if path.is_file() else any(path.glob("*.npz"))


def open_npz(path: Path) -> Dataset:
    """Open a flat file or a folder."""
    return FolderSource(path) if path.is_dir() else FlatSource(path)


class _Array(NamedTuple):
    """An array inside a zip, read row by row."""

    stream: IO[bytes]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def rows(self, first: int, last: int) -> NDArray:
        """Read the rows [first, last)."""
        width = self.width
        require_memory((last - first) * width, f"array of {last - first} rows")
        self.stream.seek(self.start + first * width)
        data = self.stream.read((last - first) * width)
        if len(data) < (last - first) * width:
            raise ValueError("the file ends early")
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])


class _Zip:
    """The numeric arrays of a `.npz`; their headers are read, their rows wait."""

    def __init__(self, path: Path) -> None:
        self.arrays: dict[str, _Array] = {}
        self.refused: dict[str, str] = {}
        try:
            self._file = zipfile.ZipFile(path)
            for member in self._file.infolist():
                self._open(member)
        except _DAMAGE as error:
            raise FlowleapError(f"'{path}' is no whole .npz file ({error})") from error

    def _open(self, member: zipfile.ZipInfo) -> None:
        name = member.filename.removesuffix(".npy")
        stream = self._file.open(member)
        version = np.lib.format.read_magic(stream)
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = header(stream)
        if dtype.kind not in "biuf":
            self.refused[name] = f"has dtype {dtype}, only numbers are read"
        elif fortran and len(shape) > 1:
            self.refused[name] = "is in Fortran order: save np.ascontiguousarray(...)"
        elif shape:
            array = _Array(stream, stream.tell(), shape, dtype)
            if min(shape) < 0 or array.start + shape[0] * array.width != member.file_size:
                raise ValueError(
                    f"{member.filename} has {member.file_size} bytes, not those of shape {shape}"
                )
            self.arrays[name] = array

    def require(self, path: Path, name: str) -> _Array:
        """Return an array, or raise saying why it cannot be read."""
        if name not in self.arrays:
            raise FlowleapError(f"'{path}': '{name}' {self.refused.get(name, 'is missing')}")
        return self.arrays[name]

    def close(self) -> None:
        self._file.close()


class FlatSource(Dataset):
    """One file for all episodes; a row is read when its episode is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = _Zip(path)
        ends = self._zip.require(path, _ENDS)
        try:
            self._ends = ends.rows(0, ends.shape[0]).astype(np.int64)
        except _DAMAGE as error:
            raise FlowleapError(f"'{path}': {_ENDS} is damaged ({error}); copy the file again") from error
        if ends.dtype.kind not in "iu" or len(self._ends) < 1 or np.any(np.diff(self._ends, prepend=0) < 1):
            raise FlowleapError(f"'{path}': {_ENDS} must be whole numbers that increase from above 0")
        self.n_episodes = len(self._ends)
        arrays = {n: a for n, a in self._zip.arrays.items() if n != _ENDS}
        frames = {n: (a.shape[1:], a.dtype) for n, a in arrays.items() if a.shape[0] == self._ends[-1]}
        self.refused = self._zip.refused
        self._paths = _describe(self, frames)
        once = [n for n, a in arrays.items() if n not in frames and a.shape[0] == self.n_episodes]
        self._once = {key: n for key, n in flat_names(once, []).items() if key not in self._paths}
        for key, name in self._once.items():
            self.extra[key] = infer_key(arrays[name].shape[1:], arrays[name].dtype)

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode."""
        first, last = int(self.episode_ends[index - 1]) if index else 0, int(self.episode_ends[index])
        columns: Episode = {}
        for key in keys:
            try:
                if key in self._once:
                    row = self._zip.arrays[self._once[key]].rows(index, index + 1)
                    columns[key] = np.repeat(row, last - first, axis=0)
                else:
                    columns[key] = self._zip.arrays[self._paths[key]].rows(first, last)
            except (*_DAMAGE, FlowleapError) as error:
                raise self.error(index, key, f"is damaged ({error}); copy the file again") from error
        return columns

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


class FolderSource(Dataset):
    """One file an episode, in the order of the numbers in their names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = sorted(path.glob("*.npz"), key=_numbers)
        self.n_episodes = len(self._files)
        first = _Zip(self._files[0])
        self.refused = first.refused
        self._paths = _describe(self, {name: (a.shape[1:], a.dtype) for name, a in first.arrays.items()})
        first.close()

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode."""
        file = _Zip(self._files[index])
        columns: Episode = {}
        for key in keys:
            name = self._paths[key]
            if name not in file.arrays:
                raise self.error(index, key, file.refused.get(name, "is missing"))
            array = file.arrays[name]
            try:
                columns[key] = array.rows(0, array.shape[0])
            except (*_DAMAGE, FlowleapError) as error:
                raise self.error(index, key, f"is damaged ({error}); copy the file again") from error
        file.close()
        return columns

    def label(self, index: int) -> str:
        """The file's name."""
        return self._files[index].name


def _describe(source: Dataset, found: dict[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, str]:
    """Set Spec, extra columns and attributes from the arrays' shapes and dtypes; return column -> array."""
    action = next((name for name in _ACTIONS if name in found), None)
    if action is None:
        raise FlowleapError(f"'{source.path}' has no array 'action' among {sorted(found)}{_why(source)}")
    shape, dtype = found.pop(action)
    if len(shape) != 1:
        raise FlowleapError(f"'{source.path}': '{action}' has shape {shape} a frame, expected one axis")
    names = flat_names(sorted(found), [])
    columns = {key: infer_key(*found[name]) for key, name in names.items()}
    source.extra = {key: columns.pop(key) for key in list(columns) if key in _EXTRA}
    if not columns:
        raise FlowleapError(f"'{source.path}' has no observations, with a row a frame{_why(source)}")
    if dtype != np.float32:
        source.extra[ACTION] = infer_key(shape, dtype)
    source.spec = Spec(columns, action_dim=shape[0], source={"dataset": source.path.name})
    source.attrs = {}
    return names | {ACTION: action}


def _why(source: Dataset) -> str:
    """Which arrays could not be read, for a message."""
    return "".join(f"; '{name}' {reason}" for name, reason in source.refused.items())


def _numbers(path: Path) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"[0-9]+", path.stem)], path.name


Reader = open_npz
