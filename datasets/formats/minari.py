"""Minari (Farama): a folder with metadata.json and HDF5, Arrow or Parquet storage; read without the minari package

Minari stores one observation more than actions; the last one, after the last action, is left out. The entries of
dictionary and tuple spaces become columns of their own, choices (Discrete) become one-hot vectors, rewards and ends
become extra columns, infos and texts are left out. Actions are the numbers of their space; dictionaries and tuples of
them are joined; choices are refused, since a policy here draws real numbers.
"""

from __future__ import annotations

import json
import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode, as_stored, flat_names, require_memory
from flowleap.datasets.formats.base import Source, explain, read_json
from flowleap.datasets.formats.hdf5 import Hdf5Source, by_number, decode_images, joined
from flowleap.datasets.formats.minari_spaces import Leaf, leaves
from flowleap.policy.core.errors import FlowleapError, optional_import

_FILE = "main_data.hdf5"
_EXTRA = ("rewards", "terminations", "truncations")
_TABLES = (".arrow", ".parquet")


def detect(path: Path) -> bool:
    """The folder of a dataset, its `data` folder, or the HDF5 file in there."""
    return _folder(path) is not None


def open_minari(path: Path) -> Source:
    """Open a Minari dataset; the columns are those of its first episode."""
    folder = _folder(path)
    if folder is None:
        raise FlowleapError(
            f"'{path}' is no Minari dataset: it needs metadata.json and {_FILE} or tables in 0, 1, ..."
        )
    kind = Hdf5Minari if (folder / _FILE).is_file() else TableMinari
    return kind(path, folder)


class _Minari(Source):
    """What the storages share."""

    def _begin(self, folder: Path) -> None:
        """Take what metadata.json says of spaces and environment."""
        where = f"'{folder / 'metadata.json'}' is damaged"
        self._metadata = read_json(folder / "metadata.json")
        with explain(where, KeyError, ValueError, TypeError, AttributeError, RecursionError):
            jpeg = bool(self._metadata.get("jpeg_encoding", True))
            self._observed = leaves(self._metadata.get("observation_space"), jpeg)
            self._acted = leaves(self._metadata.get("action_space")) or [Leaf(())]
            env = self._metadata.get("env_spec")
            env_spec = dict(json.loads(env)) if isinstance(env, str) else {}
        self._source: dict[str, Any] = {"dataset": self._metadata.get("dataset_id", self.path.name)}
        if env_spec:
            self._source |= {"env_spec": env_spec, "env": env_spec.get("id")}
        for leaf in self._acted:
            if leaf.kind not in (None, "Box"):
                part = f" at {'/'.join(leaf.names)}" if leaf.names else ""
                raise FlowleapError(
                    f"'{self.path}' has actions of a {leaf.kind} space{part}, and a policy draws real numbers: write "
                    "choices as one-hot vectors, see 'Choices as actions' in docs/data.md"
                )

    def _check_count(self) -> None:
        """Raise unless there are as many episodes as metadata.json says."""
        expected = self._metadata.get("total_episodes", self.n_episodes)
        if not self.n_episodes or expected != self.n_episodes:
            raise FlowleapError(
                f"'{self.path}' has {self.n_episodes} episodes, metadata.json says {expected}"
            )

    def _describe(self) -> None:
        """Describe the columns by the first episode."""
        found = {"/".join(("observations", *leaf.names)): leaf for leaf in self._observed}
        names = flat_names(found, ["observations/"])
        self._leaves = {key: found[name] for key, name in names.items() if found[name].refusal is None}
        self.refused = {key: why for key, name in names.items() if (why := found[name].refusal) is not None}
        first = self._read(0, [*self._leaves, *_EXTRA, ACTION])
        described = {key: as_stored(values.shape[1:], values.dtype) for key, values in first.items()}
        action, extra = described.pop(ACTION), {key: described.pop(key) for key in _EXTRA}
        self.describe(described, action, extra, source=self._source)
        steps, count = self._metadata.get("total_steps"), sum(map(self._length, range(self.n_episodes)))
        if steps not in (None, count):
            raise FlowleapError(
                f"'{self.path}' has {count} frames, total_steps in metadata.json says {steps}"
            )

    @abstractmethod
    def _length(self, index: int) -> int:
        """The number of actions of an episode."""

    @abstractmethod
    def _stored(self, index: int, name: str, leaf: Leaf, length: int) -> NDArray:
        """Read what is stored of a leaf of `observations`, `actions` or the like, images decoded."""

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode; observations without the last one."""
        columns: Episode = {}
        length = self._length(index)
        for key in keys:
            with self.naming(index, key):
                if key == ACTION:
                    columns[key] = joined(
                        [self._stored(index, "actions", leaf, length) for leaf in self._acted]
                    )
                    if columns[key].ndim == 1:
                        columns[key] = columns[key][:, None]
                elif key in _EXTRA:
                    columns[key] = self._stored(index, key, Leaf(()), length)
                else:
                    leaf = self._leaves[key]
                    values = self._stored(index, "observations", leaf, length)
                    if len(values) != length + 1:
                        raise FlowleapError(f"has {len(values)} frames for {length} actions, not one more")
                    columns[key] = (leaf.one_hot(values) if leaf.choices else values)[:-1]
        return columns


class Hdf5Minari(_Minari, Hdf5Source):
    """A Minari dataset in an HDF5 file."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path, folder / _FILE)
        self._begin(folder)
        names = [name for name in self._file if re.fullmatch(r"episode_[0-9]+", self._text(name, _FILE))]
        self._episodes = sorted(names, key=by_number)
        self.n_episodes = len(self._episodes)
        self._check_count()
        self._observed = self._observed or self._found()
        self._describe()

    def _found(self) -> list[Leaf]:
        """The observations of the first episode, where metadata.json does not describe them."""
        observations = self._group(0).get("observations")
        if not isinstance(observations, self._h5.Group):
            return [Leaf(())]
        found: list[Leaf] = []

        def visit(name: str, node: Any) -> None:
            if self._numeric(node):
                found.append(Leaf(tuple(self._text(name, "episode 0").split("/"))))

        observations.visititems(visit)
        return found

    def _group(self, index: int) -> Any:
        return self._file[self._episodes[index]]

    def _length(self, index: int) -> int:
        with self.naming(index, _EXTRA[0]):
            return len(self._require_dataset(self._group(index), _EXTRA[0]))

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode, which has as many steps as it says."""
        length = self._length(index)
        stated = self._group(index).attrs.get("total_steps", length)
        if stated != length:
            raise self.error(index, ACTION, f"has {length} frames, but total_steps says {stated}")
        return super()._read(index, keys)

    def _stored(self, index: int, name: str, leaf: Leaf, length: int) -> NDArray:
        node = self._require_dataset(self._group(index), "/".join((name, *leaf.names)))
        values = self._rows(node)
        return decode_images(values) if leaf.jpeg else values

    def seed(self, index: int) -> int | None:
        """The seed of the episode's reset."""
        seed = self._group(index).attrs.get("seed")
        return int(seed) if isinstance(seed, int | np.integer) else None


class TableMinari(_Minari):
    """A Minari dataset in Arrow or Parquet files, a folder an episode; all columns have a row an observation."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self._arrow = optional_import("pyarrow", extra="formats")
        self._begin(folder)
        if not self._observed:
            raise FlowleapError(
                f"'{path}': metadata.json has no observation_space, without which tables have no shapes"
            )
        self._folders = sorted((f for f in folder.iterdir() if f.name.isdigit()), key=lambda f: int(f.name))
        self.n_episodes = len(self._folders)
        self._check_count()
        self._opened: tuple[int, Any] = (-1, None)
        self._describe()

    def _table(self, index: int) -> Any:
        """The table of an episode; the latest one is kept."""
        if self._opened[0] != index:
            files = [file for file in self._folders[index].iterdir() if file.suffix in _TABLES]
            where = f"'{self._folders[index]}'"
            with explain(
                f"{where} cannot be read", self._arrow.ArrowException, OSError, remedy="; copy it again"
            ):
                tables = [self._open(file) for file in sorted(files, key=lambda file: by_number(file.name))]
            if not tables:
                raise FlowleapError(f"{where} holds no {' or '.join(_TABLES)} file")
            with explain(f"{where} is damaged", self._arrow.ArrowException):
                table = self._arrow.concat_tables(tables)
                table.validate(full=True)
            self._opened = index, table
        return self._opened[1]

    def _open(self, file: Path) -> Any:
        if file.suffix == ".parquet":
            parquet = optional_import("pyarrow.parquet", extra="formats").ParquetFile(file)
            sizes = (
                parquet.metadata.row_group(i).total_byte_size for i in range(parquet.metadata.num_row_groups)
            )
            require_memory(sum(sizes), f"'{file}'")
            return parquet.read()
        ipc = optional_import("pyarrow.ipc", extra="formats")
        return ipc.open_file(self._arrow.memory_map(str(file))).read_all()

    def _length(self, index: int) -> int:
        return len(self._table(index)) - 1

    def _stored(self, index: int, name: str, leaf: Leaf, length: int) -> NDArray:
        table = self._table(index)
        if name not in table.column_names:
            raise FlowleapError(f"is missing: no column {name}")
        array = table.column(name).combine_chunks()
        for part in leaf.names:
            with explain(f"is missing: no {part} in {name}", KeyError, AttributeError):
                array = array.field(
                    part.removeprefix("_index_") if array.type.get_field_index(part) < 0 else part
                )
        if name != "observations":
            array = array[:length]  # padded to the length of the observations
        if array.null_count:
            raise FlowleapError(f"has {array.null_count} missing values")
        if leaf.jpeg:
            return decode_images(array.to_pylist())
        lists = self._arrow.types.is_fixed_size_list(array.type) or self._arrow.types.is_list(array.type)
        flat = (array.flatten() if lists else array).to_numpy(zero_copy_only=False)
        if not lists:
            return flat
        shape = leaf.shape if leaf.shape is not None else (-1,)
        if flat.size != len(array) * math.prod(shape):
            raise FlowleapError(f"has {flat.size} values in {len(array)} frames, its space has shape {shape}")
        return flat.reshape(len(array), *shape)

    def seed(self, index: int) -> int | None:
        """The seed of the episode's reset."""
        file = self._folders[index] / "metadata.json"
        seed = read_json(file).get("seed") if file.is_file() else None
        return seed if isinstance(seed, int) else None


def _folder(path: Path) -> Path | None:
    """The folder with metadata and data, from any of the paths that name a dataset."""
    home = path.parent if path.name == _FILE else path
    folders = (home, home / "data")
    return next((f for f in folders if (f / "metadata.json").is_file() and _has_data(f)), None)


def _has_data(folder: Path) -> bool:
    return (folder / _FILE).is_file() or any(file.suffix in _TABLES for file in folder.glob("0/*"))


Reader = open_minari
