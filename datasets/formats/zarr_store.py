"""zarr v3 or zarr v2 replay buffer (Diffusion Policy, UMI): data/<key>, meta/episode_ends; folder or .zarr.zip

`data/<key>` is flat over all frames. This is the layout of the Diffusion Policy replay buffers, and stores of that
project (zarr v2) open as they are. Stores written by `EpisodeWriter` are zarr v3 and carry their Spec as a group
attribute.

zarr reads a missing chunk file as fill values, and Blosc reads beyond a truncated one, both without a word. The store
checks the files itself before it reads them.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import os
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.storage
from numpy.typing import NDArray

from flowleap.datasets import order
from flowleap.datasets.columns import (
    ACTION,
    CACHE_BYTES,
    Columns,
    Episode,
    as_stored,
    require_memory,
    vectors,
)
from flowleap.datasets.formats.base import Source
from flowleap.datasets.formats.zarr_open import LAYOUT, open_group, zipped_stores
from flowleap.datasets.formats.zarr_writer import FORMAT, NO_SEED, SPEC_ATTRIBUTE, EpisodeWriter, is_store
from flowleap.datasets.frames import Frames, rows_of_chunks
from flowleap.datasets.interface import NotFinite
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import Spec

__all__ = ["EpisodeStore", "EpisodeWriter", "Reader", "Writer", "detect"]

_MAX_MISSING = 10_000  # chunk files after which nobody counts on: metadata may claim any number of them
_MAX_EXPANSION, _MAX_EXTRA = 8, 2**20  # a chunk file larger than so many times its values, and bytes, is none
_BLOCK_BYTES = 32 * 2**20
_ENDS = "g['meta/episode_ends'][:]"
_SAMPLE_FRAMES = 9
# Image chunks are decoded by zarrs, since zarr's own codecs are slower. Measured once, on one machine: 9600 frames a
# second through this pipeline, 18100 through a chunk reader of our own; the library was kept.
_PIPELINE = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}


def detect(path: Path) -> bool:
    """A folder with the metadata file of a zarr group, or a zip, which needs no suffix if it holds a store."""
    return is_store(path) if path.is_dir() else path.suffix == ".zip" or bool(zipped_stores(path))


class EpisodeStore(Source):
    """Demonstrations in a zarr group. Nothing is loaded but metadata and the episode ends.

    Args:
        path: the folder or zip file.
        fill_missing: read chunk files that are not there as the fill value, as zarr does, instead of raising: some
            writers leave out chunks of zeros, but so does a broken copy.

    Attributes:
        episode_seeds: int64 [E], -1 where unknown; None if the store has none.

    Raises:
        FlowleapError: the path is missing or no such store, or episode ends and columns disagree.
    """

    lends_images = True

    def __init__(self, path: str | os.PathLike[str], fill_missing: bool = False) -> None:
        self.path = Path(path).expanduser()
        self._fill_missing = fill_missing
        group, self._root = open_group(self.path)
        self._inside = group.path  # of the store in a zip: the folder that it is in, if any
        self._sizes: dict[str, int] | None = None  # of the files in a zip, before compression
        if isinstance(self._root, zipfile.Path):
            self._sizes = {info.filename: info.file_size for info in self._root.root.infolist()}
        attrs = dict(group.attrs)
        attribute, version = FORMAT
        self._format = attrs.pop(attribute, None)
        if self._format not in (None, version):
            raise self._wrong(f" has format {self._format}, this flowleap reads {version}: upgrade flowleap")
        given = attrs.pop(SPEC_ATTRIBUTE, None)
        self.has_spec = given is not None
        if self.has_spec:
            self.spec = Spec.from_dict(given, f"dataset '{self.path}', {SPEC_ATTRIBUTE}")
        self._arrays, self.refused = self._open_columns(group)
        order = {key: i for i, key in enumerate(self.spec.observations if given else ())} | {ACTION: math.inf}
        self._keys = sorted([*self._arrays, *self.refused], key=lambda key: (order.get(key, len(order)), key))
        self._intact: dict[str, tuple[int, int]] = {}  # column -> chunk rows whose files have been checked
        self._ends = self._read_meta(group, "episode_ends")
        self.n_episodes = len(self._ends)
        self._check_lengths()
        self._starts = np.concatenate(([0], self._ends[:-1]))
        has_seeds = "episode_seeds" in self._folders("meta")
        self.episode_seeds = self._read_meta(group, "episode_seeds") if has_seeds else None
        self._block: tuple[int, int, Episode] = (0, 0, {})
        if self.has_spec:
            known = [key for key in self._keys if key in self._arrays and key not in self.spec.observations]
            self.extra = self.recognise({key: as_stored(self.shape(key), self.dtype(key)) for key in known})[
                0
            ]
            if ACTION in self.extra and self.extra[ACTION].dtype == "float32":
                del self.extra[ACTION]
        else:
            self._infer_spec()
        self.attrs = attrs

    @property
    def keys(self) -> list[str]:
        """Names of all columns, those that cannot be read among them: the Spec's order first, `action` last."""
        return self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one frame of the column."""
        return tuple(self.array(key).shape[1:])

    def dtype(self, key: str) -> np.dtype:
        """Dtype of the column as stored."""
        return np.dtype(self.array(key).dtype)

    def array(self, key: str) -> zarr.Array:
        """Return the zarr array behind a column; raise `FlowleapError` naming the nearest key if there is none."""
        if key in self.refused:
            raise self._wrong(f": column '{key}' cannot be read: {self.refused[key]}")
        if key not in self._arrays:
            raise self._wrong(f" has no column '{key}', only {', '.join(self.keys)}{suggest(key, self.keys)}")
        return self._arrays[key]

    def _wrong(self, problem: str) -> FlowleapError:
        return FlowleapError(f"dataset '{self.path}'{problem}")

    def check_files(self, key: str) -> None:
        """Raise `FlowleapError` unless the chunk files of the whole column are there and complete."""
        array = self.array(key)
        self._check_chunks(array, 0, -(-array.shape[0] // rows_of_chunks(array)))

    def read_rows(self, key: str, start: int, stop: int) -> NDArray:
        """Read the frames [start, stop) of one column as they are; raise if a chunk is missing or damaged."""
        return self._load(self.array(key), start, stop)

    def read_frames(self, key: str, frames: NDArray[np.int64]) -> NDArray:
        """Read single frames [n] of one column, without a look at their files; raise if a chunk is damaged."""
        array = self.array(key)
        try:
            return np.asarray(array.oindex[frames])
        except Exception as error:  # each codec has its own way to fail
            places = (frames // rows_of_chunks(array)).tolist()
            raise FlowleapError(self._damage(array, places, error)) from error

    def _damage(self, array: zarr.Array, places: Iterable[int], error: Exception) -> str:
        """Say which is the first of some chunks that cannot be read, and which frames it holds."""
        rows, what, held = rows_of_chunks(array), f"{self.path}/{array.path}", ""
        for place in places:
            first, last = place * rows, min((place + 1) * rows, array.shape[0]) - 1
            try:
                array[first : last + 1]
            except Exception:
                file = array.metadata.encode_chunk_key((place, *(0 for _ in array.shape[1:])))
                what, held = f"chunk {what}/{file}", f", frames {first} to {last}"
                break
        return f"{what} is truncated or damaged ({error}){held}; copy the dataset again"

    def columns(self, keys: Sequence[str] | None = None, cache_bytes: int = CACHE_BYTES) -> Columns:
        """Columns of all episodes; images and points are `Frames`."""
        keys = self._wanted(keys)
        for index, problem in self._disorders.items() if not self.lenient else ():
            raise self._wrong(f", {self.label(index)}: {problem}; repair the rows{self.or_without(index)}")
        dense = [key for key in keys if key in self.fields and self.fields[key].dense]
        numbers = self.read([key for key in keys if key not in dense])
        bounds = enumerate(zip(self._starts, self.episode_ends, strict=True))
        self.check_finite((index, {k: v[a:b] for k, v in numbers.items()}) for index, (a, b) in bounds)
        columns: dict[str, Any] = dict(numbers)
        if ACTION in columns:
            columns[ACTION] = vectors(columns[ACTION])
        return columns | dict(self.images(dense, cache_bytes))

    def images(self, keys: Sequence[str], cache_bytes: int, episodes: Sequence[int] | None = None) -> Columns:
        """Columns of images or points of some episodes, or of all, as `Frames`; the others' files are not looked at."""
        rows = None if episodes is None else self.rows(episodes)
        columns: dict[str, Frames] = {}
        for key in keys:
            columns[key] = Frames(self, key, cache_bytes, rows, finite=self.fields[key].kind == "points")
            cache_bytes -= columns[key].nbytes if columns[key].cached else 0
        return columns

    def read(self, keys: Sequence[str], episodes: slice | None = None) -> Episode:
        """Read numeric columns, key -> [frames, *shape], of all episodes or of a contiguous slice of them.

        Raises:
            FlowleapError: a key is unknown or not numeric, or a chunk is missing or damaged.
        """
        first, last, step = (episodes or slice(None)).indices(self.n_episodes)
        if step != 1:
            raise FlowleapError(f"episodes can be read as a contiguous slice only, not with step {step}")
        if first >= last:
            return {key: np.empty((0, *self.shape(key)), self.dtype(key)) for key in keys}
        start, stop = int(self._starts[first]), int(self.episode_ends[last - 1])
        return {key: self._load(self.array(key), start, stop) for key in keys}

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode, from a block of episodes: neighbours share chunks."""
        first, last, columns = self._block
        if not first <= index < last or set(columns) != set(keys):
            widths = [self.dtype(key).itemsize * math.prod(self.shape(key)) for key in keys]
            frames = _BLOCK_BYTES // max(1, sum(widths))
            fits = np.searchsorted(self.episode_ends, self._starts[index] + frames, "right")
            first, last = index, max(index + 1, int(fits))
            try:
                columns = self.read(keys, slice(first, last))
            except FlowleapError:  # perhaps only a later episode is damaged
                last = first + 1
                columns = self.read(keys, slice(first, last))
            self._block = (first, last, columns)
        start, offset = int(self._starts[index]), int(self._starts[first])
        return {key: columns[key][start - offset : self.episode_ends[index] - offset] for key in keys}

    def not_finite_at(self, key: str, frames: Sequence[int]) -> NotFinite:
        """The error that says in which episodes some frames of a column are not finite."""
        episodes = np.searchsorted(self.episode_ends, frames, side="right")
        frame = frames[0] - int(self._starts[episodes[0]])
        first = str(self.error(int(episodes[0]), key, f"is not finite at frame {frame}"))
        return NotFinite(self, {key: np.unique(episodes).tolist()}, first)

    def disorder(self, index: int) -> str | None:
        """Which column says that rows of an episode are out of order or there twice, and where."""
        return self._disorders.get(index)

    @cached_property
    def _disorders(self) -> dict[int, str]:
        """Episode -> what `disorder` says of it."""
        found: dict[int, str] = {}
        for key in self._ordering:
            values = self.read([key])[key]
            for index, (start, stop) in enumerate(zip(self._starts, self.episode_ends, strict=True)):
                problem = order.problem(values[start:stop])
                if problem is not None:
                    found.setdefault(index, f"'{key}' {problem}")
        return dict(sorted(found.items()))

    def _sample(self, key: str) -> NDArray:
        """A few frames of a column as it lies, spread over the store."""
        rows = np.unique(np.linspace(0, int(self.episode_ends[-1]) - 1, _SAMPLE_FRAMES).astype(np.int64))
        try:
            return np.concatenate([self.read_rows(key, row, row + 1) for row in rows.tolist()])
        except FlowleapError:  # whoever reads the column will hear of it
            return np.empty((0, *self.shape(key)), self.dtype(key))

    def seed(self, index: int) -> int | None:
        """The seed that an episode was recorded with, None if unknown."""
        seeds = self.episode_seeds
        return None if seeds is None or seeds[index] == NO_SEED else int(seeds[index])

    def _infer_spec(self) -> None:
        """Read a Spec off the columns of a store that carries none."""
        if ACTION in self.refused:
            self.array(ACTION)
        known = [key for key in self._keys if key in self._arrays]
        fields = {key: as_stored(self.shape(key), self.dtype(key)) for key in known}
        action = fields.pop(ACTION, None)
        if not fields:
            why = "".join(f"; '{key}' cannot be read: {reason}" for key, reason in self.refused.items())
            raise self._wrong(f" has no column beside '{ACTION}' to observe{why}")
        self.describe(fields, action, {})

    def _folders(self, name: str) -> list[str]:
        """Names of the folders in a folder; none if it is not there."""
        folder = self._root / self._inside / name
        return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []

    def _open_columns(self, group: zarr.Group) -> tuple[dict[str, zarr.Array], dict[str, str]]:
        """Open every array of `data/` on its own, so that one odd column does not hide the others."""
        arrays: dict[str, zarr.Array] = {}
        refused: dict[str, str] = {}
        names = self._folders("data")
        _register_codecs()
        for name in names:
            try:
                node = group[f"data/{name}"]
                if isinstance(node, zarr.Array) and node.dtype == np.uint8:
                    with zarr.config.set(_PIPELINE), warnings.catch_warnings():
                        # Codecs that zarrs does not know are left to zarr.
                        warnings.filterwarnings("ignore", "Array is unsupported by ZarrsCodecPipeline")
                        node = group[f"data/{name}"]
            except Exception as error:  # zarr raises many kinds for metadata it cannot parse
                refused[name] = _codec_remedy(str(error))
                continue
            if not isinstance(node, zarr.Array):
                continue
            if np.dtype(node.dtype).kind not in "biuf":
                refused[name] = f"dtype {node.dtype} is not numeric"
            elif node.ndim == 0:
                refused[name] = "it has no frame axis"
            else:
                arrays[name] = node
        if not names:
            raise self._wrong(f" has no columns in data/: {LAYOUT}")
        return arrays, refused

    def _read_meta(self, group: zarr.Group, name: str) -> NDArray[np.int64]:
        """Read a vector of whole numbers from `meta/`."""
        where = f": meta/{name}"
        try:
            array = group[f"meta/{name}"]
        except KeyError as error:
            longest = max((column.shape[0] for column in self._arrays.values()), default=0)
            remedy = self._ends_line("if all is one episode", f"np.array([{longest}])")
            raise self._wrong(f"{where} is missing: {LAYOUT}; {remedy}") from error
        except Exception as error:  # zarr raises many kinds for metadata it cannot parse
            raise self._wrong(f"{where} is damaged ({error}); copy the dataset again") from error
        if not isinstance(array, zarr.Array) or array.ndim != 1 or np.dtype(array.dtype).kind not in "iuf":
            raise self._wrong(f"{where} must be one vector of whole numbers")
        values = self._load(array, 0, array.shape[0])
        if values.dtype.kind == "f" and not (
            np.isfinite(values).all() and (values == np.round(values)).all()
        ):
            raise self._wrong(f"{where} must be one vector of whole numbers, not {values[:4].tolist()}...")
        return values.astype(np.int64)

    def _ends_line(self, case: str, ends: str) -> str:
        """What to do in some case: the line of Python that writes the ends that an expression gives."""
        first = "" if self._sizes is None else "unpack the zip; then, "
        line = f"import numpy as np, zarr; g = zarr.open_group({str(self.path)!r})"
        line = f"{line}; g.create_array('meta/episode_ends', data={ends}, overwrite=True)"
        return f'{first}{case}, python -c "{line}" writes it'

    def _check_lengths(self) -> None:
        """Raise unless the episode ends increase from above 0 to the length of every column."""
        ends = self.episode_ends
        if len(ends) == 0:
            raise self._wrong(": meta/episode_ends is empty, there are no episodes")
        bad = np.flatnonzero(np.diff(ends, prepend=0) < 1)
        if len(bad):
            i = int(bad[0])
            before = f"after {ends[i - 1]}" if i else "as the first end"
            entry = f"entry {i} is {ends[i]} {before}"
            remedy = "copy the dataset again"
            if (ends >= 0).all() and (np.diff(ends) >= 0).all():
                remedy = self._ends_line("without the empty episodes", f"np.setdiff1d({_ENDS}, [0])")
            raise self._wrong(f": meta/episode_ends must increase from above 0, but {entry}; {remedy}")
        frames = {key: array.shape[0] for key, array in self._arrays.items()}
        for key, n in frames.items():
            if n != ends[-1]:
                remedy = f"remove data/{key} or copy the dataset again"
                if n > ends[-1] and len(set(frames.values())) == 1:
                    remedy = self._ends_line("if the rest is one more episode", f"np.append({_ENDS}, {n})")
                lengths = f"{n} frames, but the last episode ends at {ends[-1]}"
                raise self._wrong(f": column '{key}' has {lengths}; {remedy}")

    def _load(self, array: zarr.Array, start: int, stop: int) -> NDArray:
        """Read rows of an array after looking at their chunk files."""
        rows = rows_of_chunks(array)
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
            # zarr leaves the tasks of other chunks behind, of which asyncio would speak when the program ends.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
            raise self._wrong(f": {self._damage(array, range(*wanted), error)}") from error

    def _check_chunks(self, array: zarr.Array, first: int, last: int) -> None:
        """Raise if a file of the chunk rows [first, last) is missing or shorter than its header says."""
        sizes = array.shards or array.chunks
        grid = [range(-(-n // c)) for n, c in zip(array.shape[1:], sizes[1:], strict=True)]
        largest = _MAX_EXPANSION * array.dtype.itemsize * math.prod(sizes) + _MAX_EXTRA
        blosc = not array.shards and any("blosc" in type(c).__name__.lower() for c in array.compressors)
        missing: list[str] = []
        # One after the other: metadata may claim any number of rows.
        for place in ((row, *rest) for row in range(first, last) for rest in itertools.product(*grid)):
            name = f"{array.path}/{array.metadata.encode_chunk_key(place)}"
            size = self._size(name)
            if size is None:
                if not self._fill_missing:
                    missing.append(name)
                if len(missing) == _MAX_MISSING:
                    break
            elif size > largest:
                wrong = f"has {size} bytes, too many for {math.prod(sizes)} values"
                raise self._wrong(f": chunk {name} {wrong}; copy the dataset again")
            elif blosc and size < self._blosc_size(name):
                raise self._wrong(f": chunk {name} is truncated; copy the dataset again")
        if not missing:
            return
        remedy = "copy the dataset again"
        if self._format is None:  # our own stores leave nothing out
            remedy += ", or, if its writer left out chunks of zeros, `flowleap convert fill_missing=true`"
        raise self._wrong(f": {len(missing)} chunk file(s) are missing, the first is {missing[0]}; {remedy}")

    def _size(self, name: str) -> int | None:
        """Bytes of a file before the zip's compression, None if it is not there."""
        if self._sizes is not None:
            return self._sizes.get(name)
        try:
            return os.stat(f"{self.path}/{name}").st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _blosc_size(self, name: str) -> int:
        """The compressed size that a Blosc chunk states in its 16-byte header."""
        with (self._root / name).open("rb") as stream:
            header = stream.read(16)
        return int.from_bytes(header[12:16], "little") if len(header) == 16 else 16


@cache
def _register_codecs() -> None:
    """Let zarr read JPEG-XL and the like, with which UMI stores its images."""
    with suppress(ImportError):
        importlib.import_module("imagecodecs.numcodecs").register_codecs(verbose=False)


def _codec_remedy(problem: str) -> str:
    """What zarr says of metadata that it cannot read; of a codec that is not there, what brings it."""
    known = "imagecodecs" in problem
    return "its codec is not installed: pip install 'flowleap[umi]' brings imagecodecs" if known else problem


Reader, Writer = EpisodeStore, EpisodeWriter
