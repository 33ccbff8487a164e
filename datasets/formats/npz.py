"""numpy: one .npz with flat arrays [N, ...] and episode_ends, or a folder with one .npz an episode

The array called `action` holds the actions, all others are observed, but for those whose names say that they are none
(`roles`). In a flat file, arrays with one row an episode are extra columns that repeat it over the
episode's frames, and arrays with neither are left out. Nothing is unpickled.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode, as_stored, flat_names, require_memory
from flowleap.datasets.formats.base import DAMAGE, Source, explain
from flowleap.datasets.interface import Dataset
from flowleap.policy.core.errors import FlowleapError

_ENDS = "episode_ends"


def detect(path: Path) -> bool:
    """A `.npz` file, or a folder with such files, of which none is a whole dataset."""
    if path.is_file():
        return path.suffix == ".npz"
    first = next(path.glob("*.npz"), None)
    return first is not None and not _is_flat(first)


def _is_flat(path: Path) -> bool:
    """Whether a file says where its episodes end."""
    try:
        with zipfile.ZipFile(path) as file:
            return f"{_ENDS}.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def open_npz(path: Path) -> Dataset:
    """Open a flat file or a folder."""
    return FolderSource(path) if path.is_dir() else FlatSource(path)


class _Array(NamedTuple):
    """An array inside a zip, read row by row."""

    stream: IO[bytes]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype
    width: int  # bytes of a row

    def rows(self, first: int, last: int) -> NDArray:
        """Read the rows [first, last)."""
        nbytes = (last - first) * self.width
        require_memory(nbytes, f"(an array of {last - first} rows)")
        self.stream.seek(self.start + first * self.width)
        data = self.stream.read(nbytes)
        if len(data) < nbytes:
            raise ValueError("the file ends early")
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])


class _Zip:
    """The numeric arrays of a `.npz`; their headers are read, their rows wait."""

    def __init__(self, path: Path) -> None:
        self.arrays: dict[str, _Array] = {}
        self.refused: dict[str, str] = {}
        with explain(f"'{path}' is no whole .npz file", *DAMAGE):
            self._file = zipfile.ZipFile(path)
            for member in self._file.infolist():
                self._open(member)

    def _open(self, member: zipfile.ZipInfo) -> None:
        name = member.filename.removesuffix(".npy")
        stream = self._file.open(member)
        old = np.lib.format.read_magic(stream) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        if dtype.kind not in "biuf":
            self.refused[name] = f"has dtype {dtype}, only numbers are read"
            if dtype.hasobject:
                self.refused[name] += ": np.concatenate episodes of several lengths, and save episode_ends"
        elif fortran and len(shape) > 1:
            self.refused[name] = "is in Fortran order: save np.ascontiguousarray(...)"
        elif shape:
            array = _Array(stream, stream.tell(), shape, dtype, dtype.itemsize * math.prod(shape[1:]))
            size = member.file_size
            if min(shape) < 0 or array.start + shape[0] * array.width != size:
                raise ValueError(f"{member.filename} has {size} bytes, not those of shape {shape}")
            self.arrays[name] = array

    def require(self, name: str) -> _Array:
        """Return an array, or raise saying why it cannot be read."""
        if name not in self.arrays:
            raise FlowleapError(self.refused.get(name, "is missing"))
        return self.arrays[name]

    def close(self) -> None:
        self._file.close()


class _NpzSource(Source):
    """What both kinds share."""

    def _describe(self, path: Path, file: _Zip, found: dict[str, _Array]) -> None:
        """Set what the arrays with a row a frame are; `_paths` is column -> array."""
        self.path, self.refused = path, file.refused
        why = "".join(f"; '{name}' {reason}" for name, reason in file.refused.items())
        arrays = {name: as_stored(array.shape[1:], array.dtype) for name, array in found.items()}
        actions = arrays.pop(ACTION, None)
        names = flat_names(sorted(arrays), [])
        columns = {key: arrays[name] for key, name in names.items()}
        if not columns:
            raise FlowleapError(f"'{path}' has no observations, with a row a frame{why}")
        self._paths = self.stored = names | ({ACTION: ACTION} if actions else {})
        self.describe(columns, actions, {})


class FlatSource(_NpzSource):
    """One file for all episodes; a row is read when its episode is."""

    def __init__(self, path: Path) -> None:
        self._zip = _Zip(path)
        rows = {array.shape[0] for name, array in self._zip.arrays.items() if name in (ACTION, "actions")}
        with explain(f"'{path}': {_ENDS} cannot be read", FlowleapError, remedy=self._ends_line(path, rows)):
            stored = self._zip.require(_ENDS)
        with explain(f"'{path}': {_ENDS} is damaged", *DAMAGE, remedy="; copy the file again"):
            given = stored.rows(0, stored.shape[0])
        with np.errstate(invalid="ignore"):
            ends = np.nan_to_num(given).astype(np.int64)
        if given.ndim != 1 or not np.array_equal(ends, given) or np.any(np.diff(ends, prepend=0) < 1):
            remedy = self._ends_line(path, rows)
            raise FlowleapError(f"'{path}': {_ENDS} must be whole numbers that increase from above 0{remedy}")
        if ends.size and rows and int(ends[-1]) not in rows:
            wrong = f"the last episode ends at {ends[-1]}, the actions have {min(rows)} rows"
            raise FlowleapError(f"'{path}': {_ENDS} does not fit: {wrong}{self._ends_line(path, rows)}")
        self._bounds, self._ends, self.n_episodes = np.append(0, ends), ends, len(ends)
        arrays = {name: array for name, array in self._zip.arrays.items() if name != _ENDS}
        frames = {name: array for name, array in arrays.items() if array.shape[0] == ends[-1]}
        self._once: dict[str, str] = {}
        self._describe(path, self._zip, frames)
        once = [n for n, array in arrays.items() if n not in frames and array.shape[0] == self.n_episodes]
        self._once |= {key: name for key, name in flat_names(once, []).items() if key not in self._paths}
        for key, name in self._once.items():
            self.extra[key] = as_stored(arrays[name].shape[1:], arrays[name].dtype)

    def _ends_line(self, path: Path, rows: set[int]) -> str:
        """The line of Python that writes the ends of one long episode, of which there is no doubt at all."""
        left_out = f" if k not in {sorted(self._zip.refused)}" if self._zip.refused else ""
        saved = f"**{{k: z[k] for k in z.files{left_out}}} | {{'{_ENDS}': [{max(rows, default=0)}]}}"
        line = f"import numpy as np; z = np.load({str(path)!r}); np.savez({str(path)!r}, {saved})"
        return f'; it holds the frame after each episode\'s last one: for one episode, python -c "{line}" writes it'

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode."""
        first, last = self._bounds[index : index + 2].tolist()
        columns: Episode = {}
        for key in keys:
            with self.naming(index, key):
                if key in self._once:
                    row = self._zip.require(self._once[key]).rows(index, index + 1)
                    columns[key] = np.repeat(row, last - first, axis=0)
                else:
                    columns[key] = self._zip.require(self._paths[key]).rows(first, last)
        return columns

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


class FolderSource(_NpzSource):
    """One file an episode, in the order of the numbers in their names."""

    def __init__(self, path: Path) -> None:
        self._files = sorted(path.glob("*.npz"), key=_numbers)
        self.n_episodes = len(self._files)
        first = _Zip(self._files[0])
        self._describe(path, first, first.arrays)
        first.close()

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode."""
        file = _Zip(self._files[index])
        columns: Episode = {}
        for key in keys:
            with self.naming(index, key):
                array = file.require(self._paths[key])
                columns[key] = array.rows(0, array.shape[0])
        file.close()
        return columns

    def label(self, index: int) -> str:
        """The file's name."""
        return self._files[index].name


def _numbers(path: Path) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"[0-9]+", path.stem)], path.name


Reader = open_npz
