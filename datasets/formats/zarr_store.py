"""EpisodeStore: demonstrations in a zarr group, `data/<key>` flat over all frames and `meta/episode_ends`.

This is the layout of the Diffusion Policy replay buffers, and stores of that project (zarr v2) open as
they are, as folders and as `.zarr.zip`. Stores written by `EpisodeWriter` are zarr v3 and carry their Spec as a group
attribute.

zarr reads a missing chunk file as fill values, and the Blosc codec reads beyond a truncated one, both without
a word. The store checks the files itself before it reads them.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, infer_key, require_memory
from flowleap.datasets.formats.zarr_files import Folder, Zip, blosc_size, open_files
from flowleap.datasets.formats.zarr_writer import (
    FORMAT_ATTRIBUTE,
    FORMAT_VERSION,
    SPEC_ATTRIBUTE,
    EpisodeWriter,
)
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ActionConvention, Spec

__all__ = ["EpisodeStore", "EpisodeWriter"]

_MAX_MISSING = 10_000  # chunk files after which nobody counts on: metadata may claim any number of them
_MAX_EXPANSION, _MAX_EXTRA = 8, 2**20  # a chunk file larger than so many times its values, and bytes, is none
_LAYOUT = "a dataset is a zarr folder with data/<key> and meta/episode_ends"


class EpisodeStore:
    """Demonstrations opened for reading. Nothing is loaded but metadata and the episode ends.

    Attributes:
        path: the folder or zip file.
        spec: the Spec it was written with, or None (see `infer_spec`).
        attrs: the group's other attributes.
        keys: names of all columns, `action` among them.
        episode_ends: int64 [E], the frame after each episode's last one.
        refused: columns that cannot be read, and why.
        episode_seeds: int64 [E], -1 where unknown; None if the store has none.

    Args:
        path: the folder or zip file.
        fill_missing: read chunk files that are not there as the fill value, as zarr does, instead of raising: some
            writers leave out chunks of zeros, but so does a broken copy.

    Raises:
        FlowleapError: the path is missing or no such store, or episode ends and columns disagree.
    """

    def __init__(self, path: str | os.PathLike[str], fill_missing: bool = False) -> None:
        self.path = Path(path).expanduser()
        self._fill_missing = fill_missing
        group, self._files = _open_group(self.path)
        attrs = dict(group.attrs)
        self._format = attrs.pop(FORMAT_ATTRIBUTE, None)
        if self._format is not None and self._format != FORMAT_VERSION:
            raise FlowleapError(
                f"dataset '{self.path}' has format {self._format}, this flowleap reads {FORMAT_VERSION}: "
                "upgrade flowleap"
            )
        spec = attrs.pop(SPEC_ATTRIBUTE, None)
        self.spec = None if spec is None else Spec.from_dict(spec, f"dataset '{self.path}', {SPEC_ATTRIBUTE}")
        self.attrs: dict[str, Any] = attrs
        self._arrays: dict[str, zarr.Array] = {}
        self.refused: dict[str, str] = {}
        self._intact: dict[str, tuple[int, int]] = {}  # column -> chunk rows whose files have been checked
        self._open_columns(group)
        self.episode_ends = self._read_meta(group, "episode_ends")
        self._check_lengths()
        has_seeds = "episode_seeds" in self._files.folders("meta")
        self.episode_seeds = self._read_meta(group, "episode_seeds") if has_seeds else None

    @property
    def keys(self) -> list[str]:
        """Names of all columns: the Spec's order first, `action` last."""
        names = [*self._arrays, *self.refused]
        order = list(self.spec.observations) if self.spec else []
        rank = {key: i for i, key in enumerate(order)} | {ACTION: len(order) + len(names)}
        return sorted(names, key=lambda key: (rank.get(key, len(order)), key))

    @property
    def readable(self) -> list[str]:
        """Names of the columns that can be read: the numeric ones."""
        return [key for key in self.keys if key in self._arrays]

    @property
    def n_frames(self) -> int:
        """Frames of all episodes."""
        return int(self.episode_ends[-1])

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    @cached_property
    def episode_starts(self) -> NDArray[np.int64]:
        """int64 [E], the first frame of each episode."""
        return np.concatenate(([0], self.episode_ends[:-1]))

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one frame of the column."""
        return tuple(self.array(key).shape[1:])

    def dtype(self, key: str) -> np.dtype:
        """Dtype of the column as stored."""
        return np.dtype(self.array(key).dtype)

    def array(self, key: str) -> zarr.Array:
        """Return the zarr array behind a column; raise `FlowleapError` naming the nearest key if there is none."""
        if key in self.refused:
            raise FlowleapError(f"dataset '{self.path}': column '{key}' cannot be read: {self.refused[key]}")
        if key not in self._arrays:
            raise FlowleapError(
                f"dataset '{self.path}' has no column '{key}', only {', '.join(self.keys)}"
                f"{suggest(key, self.keys)}"
            )
        return self._arrays[key]

    def check_files(self, key: str) -> None:
        """Raise `FlowleapError` unless the chunk files of the whole column are there and complete."""
        array = self.array(key)
        self._check_chunks(array, 0, -(-array.shape[0] // (array.shards or array.chunks)[0]))

    def read_rows(self, key: str, start: int, stop: int) -> NDArray:
        """Read the frames [start, stop) of one column as they are; raise if a chunk is missing or damaged."""
        return self._load(self.array(key), start, stop)

    def read(
        self, keys: Sequence[str], episodes: slice | None = None, allow_nan: bool = False
    ) -> dict[str, NDArray]:
        """Read columns, key -> [frames, *shape], of all episodes or of a contiguous slice of them.

        Args:
            keys: the columns; only numeric ones can be read.
            episodes: which episodes, all by default.
            allow_nan: return NaN and infinity as they are.

        Raises:
            FlowleapError: a key is unknown or not numeric, a chunk is missing or damaged, or a value is not
                finite (the message names key, episode, and frame within the episode).
        """
        first, last, step = (episodes or slice(None)).indices(self.n_episodes)
        if step != 1:
            raise FlowleapError(f"episodes can be read as a contiguous slice only, not with step {step}")
        if first >= last:
            return {key: np.empty((0, *self.shape(key)), self.dtype(key)) for key in keys}
        start, stop = int(self.episode_starts[first]), int(self.episode_ends[last - 1])
        columns = {key: self._load(self.array(key), start, stop) for key in keys}
        if not allow_nan:
            for key, values in columns.items():
                self._require_finite(key, values, start)
        return columns

    def episode(self, index: int, keys: Sequence[str] | None = None) -> dict[str, NDArray]:
        """Read one episode, key -> [T, *shape]; all columns by default."""
        if not -self.n_episodes <= index < self.n_episodes:
            raise FlowleapError(f"dataset '{self.path}' has episodes 0 to {self.n_episodes - 1}, not {index}")
        index %= self.n_episodes
        return self.read(self.keys if keys is None else keys, slice(index, index + 1))

    def infer_spec(
        self,
        keys: Sequence[str] | None = None,
        n_obs_steps: int = 1,
        horizon: int = 1,
        n_action_steps: int = 1,
        control_hz: float = 0.0,
        action_convention: ActionConvention = "absolute",
    ) -> Spec:
        """Read a Spec off the columns of a store that carries none.

        Which columns are images is `columns.infer_key`'s to say.

        Args:
            keys: observation keys; all numeric columns but `action` by default.
            n_obs_steps, horizon, n_action_steps, control_hz, action_convention: what arrays cannot tell.
        """
        action_shape = self.shape(ACTION)
        if len(action_shape) != 1:
            raise FlowleapError(
                f"dataset '{self.path}': action has shape {action_shape} a frame, expected one axis"
            )
        chosen = keys if keys is not None else [key for key in self.readable if key != ACTION]
        if not chosen:
            why = "".join(f"; '{key}' cannot be read: {reason}" for key, reason in self.refused.items())
            raise FlowleapError(f"dataset '{self.path}' has no column beside '{ACTION}' to observe{why}")
        return Spec(
            observations={key: infer_key(self.shape(key), self.dtype(key)) for key in chosen},
            action_dim=action_shape[0],
            n_obs_steps=n_obs_steps,
            horizon=horizon,
            n_action_steps=n_action_steps,
            control_hz=control_hz,
            action_convention=action_convention,
            source={"dataset": self.path.name},
        )

    def _open_columns(self, group: zarr.Group) -> None:
        """Open every array of `data/` on its own, so that one odd column does not hide the others."""
        names = self._files.folders("data")
        for name in names:
            try:
                node = group[f"data/{name}"]
            except Exception as error:  # zarr raises many kinds for metadata it cannot parse
                self.refused[name] = str(error)
                continue
            if not isinstance(node, zarr.Array):
                continue
            if np.dtype(node.dtype).kind not in "biuf":
                self.refused[name] = f"dtype {node.dtype} is not numeric"
            elif node.ndim == 0:
                self.refused[name] = "it has no frame axis"
            else:
                self._arrays[name] = node
        if not names:
            raise FlowleapError(f"dataset '{self.path}' has no columns in data/: {_LAYOUT}")

    def _read_meta(self, group: zarr.Group, name: str) -> NDArray[np.int64]:
        """Read a vector of whole numbers from `meta/`."""
        where = f"dataset '{self.path}': meta/{name}"
        try:
            array = group[f"meta/{name}"]
        except KeyError as error:
            raise FlowleapError(f"{where} is missing: {_LAYOUT}") from error
        except Exception as error:  # zarr raises many kinds for metadata it cannot parse
            raise FlowleapError(f"{where} is damaged ({error}); copy the dataset again") from error
        if not isinstance(array, zarr.Array) or array.ndim != 1 or np.dtype(array.dtype).kind not in "iu":
            raise FlowleapError(f"{where} must be one vector of whole numbers")
        return self._load(array, 0, array.shape[0]).astype(np.int64)

    def _check_lengths(self) -> None:
        """Raise unless the episode ends increase from above 0 to the length of every column."""
        ends = self.episode_ends
        where = f"dataset '{self.path}'"
        if len(ends) == 0:
            raise FlowleapError(f"{where}: meta/episode_ends is empty, there are no episodes")
        bad = np.flatnonzero(np.diff(ends, prepend=0) < 1)
        if len(bad):
            i = int(bad[0])
            before = f"after {ends[i - 1]}" if i else "as the first end"
            raise FlowleapError(
                f"{where}: meta/episode_ends must increase from above 0, but entry {i} is {ends[i]} {before}"
            )
        for key, array in self._arrays.items():
            if array.shape[0] != ends[-1]:
                raise FlowleapError(
                    f"{where}: column '{key}' has {array.shape[0]} frames, "
                    f"but the last episode ends at {ends[-1]}"
                )

    def _require_finite(self, key: str, values: NDArray, start: int) -> None:
        """Raise if a value is NaN or infinite; `start` is the frame that `values` begin with."""
        if values.dtype.kind != "f":
            return
        finite = np.isfinite(values)
        if finite.all():
            return
        bad = np.argwhere(~finite)[0]
        frame = start + int(bad[0])
        episode = int(np.searchsorted(self.episode_ends, frame, side="right"))
        raise FlowleapError(
            f"dataset '{self.path}': '{key}' is {values[tuple(bad)]} in episode {episode}, "
            f"frame {frame - self.episode_starts[episode]}; remove the episode or repair the value"
        )

    def _load(self, array: zarr.Array, start: int, stop: int) -> NDArray:
        """Read rows of an array after looking at their chunk files."""
        rows = (array.shards or array.chunks)[0]
        nbytes = (stop - start) * array.dtype.itemsize * math.prod(array.shape[1:])
        require_memory(nbytes, f"dataset '{self.path}': {array.path}, frames {start} to {stop - 1},")
        wanted = (start // rows, -(-stop // rows))
        checked = self._intact.get(array.path)
        if checked is None or wanted[0] < checked[0] or wanted[1] > checked[1]:
            self._check_chunks(array, *wanted)
            self._intact[array.path] = wanted
        try:
            return np.asarray(array[start:stop])
        except Exception as error:  # each codec has its own way to fail
            raise FlowleapError(
                f"dataset '{self.path}': {_damaged_chunk(array, start, stop)} is truncated or damaged "
                f"({error}); copy the dataset again"
            ) from error

    def _check_chunks(self, array: zarr.Array, first: int, last: int) -> None:
        """Raise if a file of the chunk rows [first, last) is missing or shorter than its header says."""
        sizes = array.shards or array.chunks
        grid = [range(-(-n // c)) for n, c in zip(array.shape[1:], sizes[1:], strict=True)]
        largest = _MAX_EXPANSION * array.dtype.itemsize * math.prod(sizes) + _MAX_EXTRA
        blosc = not array.shards and any("blosc" in type(c).__name__.lower() for c in array.compressors)
        missing: list[str] = []
        places = ((row, *rest) for row in range(first, last) for rest in itertools.product(*grid))
        for place in places:
            name = f"{array.path}/{array.metadata.encode_chunk_key(place)}"
            size = self._files.size(name)
            if size is None:
                if not self._fill_missing:
                    missing.append(name)
                if len(missing) == _MAX_MISSING:
                    break
            elif size > largest:
                raise FlowleapError(
                    f"dataset '{self.path}': chunk {name} has {size} bytes, too many for {math.prod(sizes)} values; "
                    "copy the dataset again"
                )
            elif blosc and size < blosc_size(self._files.head(name, 16)):
                raise FlowleapError(
                    f"dataset '{self.path}': chunk {name} is truncated; copy the dataset again"
                )
        if not missing:
            return
        remedy = "copy the dataset again"
        if self._format is None:  # our own stores leave nothing out
            remedy += ", or, if its writer left out chunks of zeros, `flowleap convert fill_missing=true`"
        raise FlowleapError(
            f"dataset '{self.path}': {len(missing)} chunk file(s) are missing, the first is {missing[0]}; {remedy}"
        )


def _open_group(path: Path) -> tuple[zarr.Group, Folder | Zip]:
    """Open a zarr group or say what is there instead."""
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        stores = sorted(name for name in siblings if name.endswith(".zarr"))
        beside = f"; '{path.parent}' holds {', '.join(stores[:8])}" if stores else ""
        raise FlowleapError(
            f"dataset '{path}' does not exist{suggest(path.name, siblings)}{beside} ({_LAYOUT})"
        )
    files = open_files(path)
    try:
        store = zarr.storage.ZipStore(path, mode="r") if isinstance(files, Zip) else path
        return zarr.open_group(store, mode="r", use_consolidated=False), files
    except Exception as error:  # FileNotFoundError, ContainsArrayError, JSON errors: all mean the same here
        inside = sorted(p.name for p in path.glob("*.zarr")) if path.is_dir() else []
        hint = f"; it contains {', '.join(inside[:8])}" if inside else ""
        raise FlowleapError(f"dataset '{path}' is not a zarr group: {_LAYOUT}{hint}") from error


def _damaged_chunk(array: zarr.Array, start: int, stop: int) -> str:
    """Name the rows of the first chunk in [start, stop) that cannot be read."""
    rows = (array.shards or array.chunks)[0]
    for chunk in range(start // rows, -(-stop // rows)):
        lo, hi = chunk * rows, min((chunk + 1) * rows, array.shape[0])
        try:
            array[lo:hi]
        except Exception:
            return f"chunk {chunk} of {array.path} (frames {lo} to {hi - 1})"
    return array.path
