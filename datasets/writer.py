"""Writing an episode store: streamed, checked against the Spec, visible under its name only when complete."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import ZstdCodec

from flowleap.policy.spec import FlowleapError, Spec, suggest

ACTION = "action"
SPEC_ATTRIBUTE = "flowleap_spec"
FORMAT_ATTRIBUTE = "flowleap_format"
FORMAT_VERSION = 1
NO_SEED = -1  # what `meta/episode_seeds` holds for an episode without a seed

_CHUNK_BYTES = 2**20
_BUFFER_BYTES = 32 * 2**20


class _Episode(NamedTuple):
    columns: dict[str, NDArray]
    seed: int


class EpisodeWriter:
    """Context manager that writes episodes into a new zarr v3 store.

    Episodes are buffered up to 32 MiB and streamed into a hidden folder beside `path`, which takes the name
    `path` when the block ends. Any exception removes the hidden folder, except `KeyboardInterrupt` after at
    least one episode: then what was recorded is kept, and the interrupt goes on.

    Every chunk carries a checksum and is written even where it is all zeros, so that a reader notices a
    damaged or missing file.

    Args:
        path: the new store; by custom it ends in `.zarr`.
        spec: observation keys, shapes and dtypes, and the action dimension.
        attrs: further attributes of the group; `self.attrs` may be changed until the block ends. Values that
            JSON does not know are written as lists or strings.
        overwrite: replace an existing store, once the new one is complete.
        keep_interrupted: False removes what was written on `KeyboardInterrupt` too: all episodes or none.

    Raises:
        FlowleapError: `path` exists, a key cannot be a column name, an episode does not fit the Spec, nothing
            was added, or the file system refuses (full disk, permissions).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: Spec,
        attrs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        keep_interrupted: bool = True,
    ) -> None:
        self.path = Path(path).expanduser()
        self.spec = spec
        self.attrs: dict[str, Any] = dict(attrs or {})
        self._overwrite = overwrite
        self._keep_interrupted = keep_interrupted
        self._columns: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            key: (tuple(obs.shape), np.dtype(obs.dtype)) for key, obs in spec.observations.items()
        }
        self._columns[ACTION] = ((spec.action_dim,), np.dtype(np.float32))
        for key in spec.observations:
            _check_key(key)
        self._check_target()
        self._temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp")
        self._pending: list[_Episode] = []
        self._lengths: list[int] = []  # of the episodes already streamed out
        self._arrays: dict[str, zarr.Array] = {}
        self._seeds: list[int] = []

    @property
    def n_episodes(self) -> int:
        """Episodes added so far."""
        return len(self._lengths) + len(self._pending)

    @property
    def n_frames(self) -> int:
        """Frames added so far."""
        return sum(self._lengths) + sum(len(e.columns[ACTION]) for e in self._pending)

    def add(self, episode: Mapping[str, ArrayLike], seed: int | None = None) -> None:
        """Append one episode: key -> [T, *shape], equal T >= 1 for every key of the Spec and `action`."""
        columns = self._checked(episode)
        self._pending.append(_Episode(columns, NO_SEED if seed is None else int(seed)))
        if sum(c.nbytes for e in self._pending for c in e.columns.values()) >= _BUFFER_BYTES:
            self._flush()

    def __enter__(self) -> EpisodeWriter:
        with self._file_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._group = zarr.create_group(self._temporary, zarr_format=3)
            data = self._group.create_group("data")
            self._group.create_group("meta")
            for key, (shape, dtype) in self._columns.items():
                rows = max(1, _CHUNK_BYTES // max(1, dtype.itemsize * int(np.prod(shape))))
                # Kept open: an array opened again has lost `write_empty_chunks` (it is no part of the format).
                self._arrays[key] = data.create_array(
                    key,
                    shape=(0, *shape),
                    chunks=(rows, *shape),
                    dtype=dtype,
                    compressors=ZstdCodec(level=3, checksum=True),
                    config={"write_empty_chunks": True},
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        keep = kind is None or (interrupted and self._keep_interrupted and self.n_episodes > 0)
        try:
            if keep:
                with self._file_errors():
                    self._finalise()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _check_target(self) -> None:
        """Raise unless `path` is free, or a store that may be replaced."""
        if not self.path.name:
            raise FlowleapError(f"'{self.path}' is no name for a dataset; use something like data/pusht.zarr")
        if not self.path.exists():
            return
        if not self._overwrite:
            raise FlowleapError(f"'{self.path}' exists already; choose another name or say overwrite=true")
        if not any((self.path / marker).is_file() for marker in ("zarr.json", ".zgroup")):
            raise FlowleapError(f"'{self.path}' is not a zarr store: it will not be overwritten")

    def _checked(self, episode: Mapping[str, ArrayLike]) -> dict[str, NDArray]:
        """Return the episode as arrays of the Spec's dtypes, or raise naming key, episode and frame."""
        where = f"episode {self.n_episodes}"
        for key in episode:
            if key not in self._columns:
                raise FlowleapError(f"{where}: '{key}' is not in the Spec{suggest(key, self._columns)}")
        columns: dict[str, NDArray] = {}
        for key, (shape, dtype) in self._columns.items():
            if key not in episode:
                raise FlowleapError(f"{where}: '{key}' is missing, the Spec requires it")
            values = np.asarray(episode[key])
            if values.shape[1:] != shape or values.ndim != len(shape) + 1:
                expected = ", ".join(["frames", *map(str, shape)])
                raise FlowleapError(f"{where}: '{key}' has shape {values.shape}, expected ({expected})")
            columns[key] = _cast(values, dtype, f"{where}: '{key}'")
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) != 1 or lengths[ACTION] < 1:
            raise FlowleapError(f"{where}: every key needs the same number of frames >= 1, got {lengths}")
        return columns

    def _flush(self) -> None:
        """Stream the pending episodes out. May be repeated after an interruption: the rows are the same."""
        if not self._pending:
            return
        start = sum(self._lengths)
        stop = self.n_frames
        with self._file_errors():
            for key, array in self._arrays.items():
                array.resize((stop, *array.shape[1:]))
                array[start:stop] = np.concatenate([e.columns[key] for e in self._pending])
        done = self._pending
        self._pending, self._lengths, self._seeds = (
            [],
            self._lengths + [len(e.columns[ACTION]) for e in done],
            self._seeds + [e.seed for e in done],
        )

    def _finalise(self) -> None:
        """Write what describes the episodes and give the store its name."""
        if not self.n_episodes:
            raise FlowleapError(f"no episode was added, '{self.path}' is not written")
        self._flush()
        meta = {"episode_ends": np.cumsum(self._lengths, dtype=np.int64)}
        if any(seed != NO_SEED for seed in self._seeds):
            meta["episode_seeds"] = np.array(self._seeds, dtype=np.int64)
        for name, values in meta.items():
            self._group.create_array(
                f"meta/{name}",
                data=values,
                chunks=values.shape,
                compressors=ZstdCodec(level=3, checksum=True),
                config={"write_empty_chunks": True},
            )
        own = {SPEC_ATTRIBUTE: self.spec.to_dict(), FORMAT_ATTRIBUTE: FORMAT_VERSION}
        self._group.attrs.update(json.loads(json.dumps({**self.attrs, **own}, default=_plain)))
        if not self.path.exists():
            os.rename(self._temporary, self.path)
            return
        self._check_target()
        retired = self._temporary.with_suffix(".old")
        os.rename(self.path, retired)
        os.rename(self._temporary, self.path)
        shutil.rmtree(retired, ignore_errors=True)

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        """Turn what the file system refuses into an error that names the store."""
        try:
            yield
        except OSError as error:
            raise FlowleapError(f"cannot write dataset '{self.path}': {error.strerror or error}") from error


def _check_key(key: str) -> None:
    """Raise unless `key` can name a zarr array and a file."""
    if key == ACTION:
        raise FlowleapError(f"'{ACTION}' cannot be an observation key: it holds the actions")
    bad = not key.isprintable() or any(c in key for c in "/\\") or key.startswith((".", "__"))
    if not key or bad or len(key.encode()) > 200:
        raise FlowleapError(
            f"observation key {key!r} cannot name a column: use letters, digits and underscores"
        )


def _cast(values: NDArray, dtype: np.dtype, where: str) -> NDArray:
    """Return a copy in `dtype`; raise if a whole number changes or a value is not finite."""
    if values.dtype.kind not in "biuf" or not np.can_cast(values.dtype, dtype, "same_kind"):
        raise FlowleapError(f"{where} has dtype {values.dtype}, which does not fit the Spec's {dtype}")
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if dtype.kind == "f":
        finite = np.isfinite(cast)
        if not finite.all():
            frame = int(np.argwhere(~finite)[0, 0])
            raise FlowleapError(f"{where} is not finite at frame {frame}")
    if values.dtype.kind in "iu" and values.dtype != dtype and not np.array_equal(cast, values):
        raise FlowleapError(f"{where} has values of {values.dtype} that {dtype} cannot hold exactly")
    return cast


def _plain(value: Any) -> Any:
    """Make an attribute JSON-ready: numpy scalars and arrays as numbers and lists, the rest as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
