"""HDF5 files of others: links and storage in other files are not followed, names are text."""

from __future__ import annotations

import io
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode, as_stored, flat_names, require_memory
from flowleap.datasets.formats.base import Source, explain
from flowleap.datasets.interface import MALFORMED
from flowleap.policy.core.errors import FlowleapError, optional_import, suggest
from flowleap.policy.core.spec import ObsKey

SUFFIXES = (".hdf5", ".h5")
_MAGIC = b"\x89HDF\r\n\x1a\n"
_UNREADABLE: tuple[type[Exception], ...] = (FlowleapError, *MALFORMED)
_ENCODED = (b"\xff\xd8\xff", b"\x89PNG")  # first bytes of a JPEG and of a PNG


def is_hdf5(path: Path) -> bool:
    """A file with the signature, or at least a suffix, of HDF5."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC or path.suffix in SUFFIXES


def holds(path: Path, look: Callable[[Any], bool]) -> bool:
    """Whether a path is an HDF5 file in which `look(file)` finds its layout; false where it cannot be read."""
    if not is_hdf5(path):
        return False
    try:
        h5py = optional_import("h5py", extra="formats")
        with h5py.File(path, "r") as file:
            return look(file)
    except _UNREADABLE:
        return False


def positive(value: Any) -> float:
    """A finite number above 0 as it is, 0.0 for all else: rates in metadata of others."""
    known = isinstance(value, int | float) and 0 < value < math.inf
    return float(value) if known else 0.0


def is_group(node: Any) -> bool:
    """Whether what h5py found under a name (None: nothing) is a group."""
    return node is not None and not hasattr(node, "dtype")


def is_array(node: Any) -> bool:
    """Whether what h5py found under a name (None: nothing) is a dataset."""
    return hasattr(node, "dtype")


def decode_images(frames: Sequence[Any] | NDArray, mode: str | None = None) -> NDArray[np.uint8]:
    """Decode JPEG or PNG frames [T], each as bytes, perhaps with padding behind it; `mode` is one of PIL's."""
    image = optional_import("PIL.Image", extra="formats")
    decoded: NDArray[np.uint8] | None = None
    with explain("holds a damaged image", OSError, ValueError, SyntaxError, image.DecompressionBombError):
        for i, frame in enumerate(frames):
            picture = image.open(io.BytesIO(bytes(frame)))
            pixels = np.asarray(picture.convert(mode) if mode else picture)
            if decoded is None:
                require_memory(len(frames) * pixels.nbytes, "")
                decoded = np.empty((len(frames), *pixels.shape), np.uint8)
            decoded[i] = pixels
    if decoded is None:
        raise FlowleapError("has no frames")
    return decoded


class Hdf5Source(Source):
    """A dataset in one HDF5 file, which must be whole."""

    def __init__(self, path: Path, file: Path) -> None:
        self._h5, self.path = optional_import("h5py", extra="formats"), path
        self._file = self._open_file(file)

    def _open_file(self, file: Path) -> Any:
        with explain(f"'{file}' is no whole HDF5 file", OSError, remedy="; copy or record it again"):
            return self._h5.File(file, "r")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _require_own(self, node: Any) -> None:
        """Raise unless an object, given as h5py's low-level identifier, and its data are in the file itself.

        A link or a dataset can name any file of this machine, whose content would be converted, shown and passed on.
        The message does not name the file.
        """
        h5py = self._h5
        elsewhere = h5py.h5f.get_name(node) != h5py.h5f.get_name(self._file.id)
        if not elsewhere and isinstance(node, h5py.h5d.DatasetID) and node.get_offset() is None:
            properties = node.get_create_plist()
            virtual = properties.get_layout() == h5py.h5d.VIRTUAL
            elsewhere = virtual or properties.get_external_count() > 0
        if elsewhere:
            raise FlowleapError("is stored in another file, which is not read: merge the files with h5copy")

    def _text(self, name: Any, where: str) -> str:
        """Return a name as text; raise where it is no UTF-8, which h5py hands out as bytes."""
        try:
            return name.decode() if isinstance(name, bytes) else str(name)
        except UnicodeDecodeError as error:
            raise FlowleapError(f"'{self.path}': {where} has a name that is no UTF-8: {name!r}") from error

    def _numeric(self, node: Any) -> bool:
        """Whether an object is a dataset of numbers with a row a frame."""
        return isinstance(node, self._h5.Dataset) and node.dtype.kind in "biuf" and node.ndim >= 1

    def _require_dataset(self, group: Any, path: str) -> Any:
        """Return a dataset of the file itself."""
        node = group.get(path)
        if not isinstance(node, self._h5.Dataset):
            raise FlowleapError(f"is missing: no dataset {path}{suggest(path, map(str, group))}")
        self._require_own(node.id)
        return node

    def _rows(self, node: Any, first: int = 0, last: int | None = None) -> NDArray:
        """Read the rows [first, last) of a dataset; by default all."""
        last = len(node) if last is None else last
        require_memory((last - first) * math.prod(node.shape[1:]) * node.dtype.itemsize, "")
        values: NDArray = node[first:last]
        return values


class Hdf5Episodes(Hdf5Source):
    """Episodes of a layout that others made: each is a run of rows of the datasets below a group.

    Observed are the datasets whose path begins with one of `observed`; the others are extra columns. What has one row
    an episode, and what beside the observations has another number of rows than the actions, is no column, and
    `refused` says so.

    Args:
        path: file or folder.
        file: the file with the first episode.
        actions: the dataset with the actions; several are joined, in their order.
    """

    observed: ClassVar[tuple[str, ...]]
    """Beginnings of the paths of observations, the longer ones first; they are cut off the names."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the paths of what is no column, and not worth a word."""
    may_lack_actions = False
    """Whether a file without the dataset of the actions is still of this layout."""
    ahead = 0
    """How many rows more than actions a dataset may have; they are left out."""
    _paths: dict[str, str]  # column -> path below the group; that of the actions may stand for several

    def __init__(self, path: Path, file: Path, actions: str | Sequence[str]) -> None:
        super().__init__(path, file)
        self._actions = [actions] if isinstance(actions, str) else [str(name) for name in actions]
        self._encoded: set[str] = set()  # paths of the images that are JPEG or PNG files

    @abstractmethod
    def _place(self, index: int) -> tuple[Any, int, int]:
        """The group of an episode, and its rows [first, last)."""

    def _first_group(self) -> Any:
        """The group of the first episode."""
        return self._place(0)[0]

    def _no_observations(self) -> str:
        """What to say, and to do, where nothing is observed."""
        return f"has no observations ({', '.join(f'{start}...' for start in self.observed)})"

    def _first_observed(self, group: Any) -> str:
        """The path of an observation, whose rows are counted where there are no actions."""
        found: list[str] = []

        def visit(name: str, node: Any) -> None:
            path = self._text(name, self.label(0))
            if self._is_observed(path) and self._numeric(node):
                found.append(path)

        group.visititems(visit)
        if not found:
            raise FlowleapError(f"'{self.path}', {self.label(0)} {self._no_observations()}")
        return min(found)

    def _is_observed(self, path: str) -> bool:
        return path.startswith(self.observed) or f"{path}/" in self.observed

    def _infer(self, **facts: Any) -> None:
        """Describe the columns by the first episode; `facts` are further fields of the Spec."""
        group = self._first_group()
        if self.may_lack_actions and not all(self._numeric(group.get(name)) for name in self._actions):
            self._actions = []  # another column may hold them
        self._counted = self._actions[0] if self._actions else self._first_observed(group)
        group, first, _ = self._place(0)
        with self.naming(0, self._counted):
            rows = len(self._require_dataset(group, self._counted))
        paths, refused = self._find(group, rows)
        observed = [path for path in paths if self._is_observed(path)]
        if not observed:
            more = "".join(f"; {name} {reason}" for name, reason in refused.items())
            raise FlowleapError(f"'{self.path}', {self.label(0)} {self._no_observations()}{more}")
        self._paths = flat_names([*observed, *(p for p in paths if p not in observed)], self.observed)
        described: dict[str, ObsKey] = {}
        for key in [*self._paths, *([ACTION] if self._actions else [])]:
            with self.naming(0, key):
                values = self._column(group, key, first, first + 1)
            described[key] = as_stored(values.shape[1:], values.dtype)
        action = described.pop(ACTION, None)
        observations = {key: described.pop(key) for key, path in self._paths.items() if path in observed}
        self.describe(observations, action, described, **facts)
        self.refused = refused

    def _find(self, group: Any, rows: int) -> tuple[list[str], dict[str, str]]:
        """Paths below the first episode's group of what is a column, and why others are none."""
        found: list[str] = []
        refused: dict[str, str] = {}

        def visit(name: str, node: Any) -> None:
            path = self._text(name, self.label(0))
            if path in self._actions or path.startswith(self.ignored) or not self._is_column(path, node):
                return
            fits = 0 <= len(node) - rows <= self.ahead
            if fits or (self._is_observed(path) and len(node) > 1):  # else an error when it is read
                found.append(path)
            else:
                refused[path.replace("/", ".")] = f"has {len(node)} rows, not the {rows} of the actions"

        group.visititems(visit)
        return sorted(found), refused

    def _is_column(self, path: str, node: Any) -> bool:
        with self.naming(0, path):
            if self._is_encoded(node):
                self._encoded.add(path)
        return path in self._encoded or self._numeric(node)

    def _is_encoded(self, node: Any) -> bool:
        """Whether a dataset holds JPEG or PNG files: a row of bytes a frame, of any length or padded to one."""
        if not isinstance(node, self._h5.Dataset) or not node.size:
            return False
        lengths_differ = node.ndim == 1 and self._h5.check_vlen_dtype(node.dtype) == np.uint8
        padded = node.ndim == 2 and node.dtype == np.uint8
        if not (lengths_differ or padded):
            return False
        self._require_own(node.id)
        return bytes(node[0][:8]).startswith(_ENCODED)

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode."""
        columns: Episode = {}
        group, first, last = self._place(index)
        for key in keys:
            with self.naming(index, key):
                columns[key] = self._column(group, key, first, last)
        return columns

    def _column(self, group: Any, key: str, first: int, last: int) -> NDArray:
        """Read the rows [first, last) of a column."""
        paths = self._actions if key == ACTION else [self._paths[key]]
        return joined([self._values(group, path, first, last) for path in paths])

    def _values(self, group: Any, path: str, first: int, last: int) -> NDArray:
        """Read the rows [first, last) of a dataset, images decoded."""
        node, rows = self._require_dataset(group, path), len(self._require_dataset(group, self._counted))
        if node.ndim < 1 or not 0 <= len(node) - rows <= self.ahead:
            raise FlowleapError(f"has {len(node) if node.ndim else 'no'} rows, the actions have {rows}")
        if path in self._encoded:
            return self._decoded(node, first, last)
        if node.dtype.kind not in "biuf":
            raise FlowleapError(f"has dtype {node.dtype}, not numbers")
        return self._rows(node, first, last)

    def _decoded(self, node: Any, first: int, last: int) -> NDArray[np.uint8]:
        """Read the rows [first, last) of encoded images."""
        if node.ndim > 2 or node.dtype.kind not in "Ou":
            raise FlowleapError(f"has dtype {node.dtype}, not the encoded images of the episodes before")
        return decode_images(self._rows(node, first, last), "RGB")


def joined(parts: Sequence[NDArray]) -> NDArray:
    """Return the parts of the actions, [T, ...] each, as one vector a frame; one part as it is."""
    if len(parts) == 1:
        return parts[0]
    if len({len(part) for part in parts}) > 1:
        raise FlowleapError(f"is to be joined of parts with {[len(part) for part in parts]} rows")
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def by_number(name: str) -> tuple[list[int], str]:
    """Sort names by the numbers in them, then by letter: `demo_10` comes after `demo_9`."""
    return [int(digits) for digits in re.findall(r"[0-9]+", name)], name
