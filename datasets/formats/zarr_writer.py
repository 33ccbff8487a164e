"""Writing an episode store: streamed, checked against the Spec, visible under its name only when complete."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike
from zarr.codecs import ZstdCodec

from flowleap.datasets.columns import ACTION, Episode, Layout, plain
from flowleap.datasets.formats.zarr_journal import Journal
from flowleap.datasets.target import Target
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec

SPEC_ATTRIBUTE = "flowleap_spec"
FORMAT_ATTRIBUTE = "flowleap_format"
FORMAT_VERSION = 1
NO_SEED = -1  # what `meta/episode_seeds` holds for an episode without a seed

_CHUNK_BYTES = 2 * 2**20
_ZSTD_LEVEL = 1  # level 3 takes twice the time for less than 1 % of the bytes of recorded floats
_BUFFER_BYTES = 64 * 2**20


class EpisodeWriter:
    """Context manager that writes episodes into a new zarr v3 store.

    Episodes are buffered up to 64 MiB and streamed into a hidden folder beside `path`, which takes the name
    `path` when the block ends. Any exception removes the hidden folder, except `KeyboardInterrupt` and `SystemExit`
    (SIGTERM) after at least one episode: then what was recorded is kept, and the interrupt goes on.

    Every chunk carries a checksum and is written even where it is all zeros, so that a reader notices a
    damaged or missing file.

    A writer with a `job` outlives `kill -9` and SIGTERM: the next one with the same path and job begins with the
    episodes that were streamed out (`n_episodes` says how many), and the caller goes on with the one after them.

    Args:
        path: the new store; by custom it ends in `.zarr`.
        spec: observation keys, shapes and dtypes, and the action dimension.
        attrs: further attributes of the group; `self.attrs` may be changed until the block ends. Values that
            JSON does not know are written as lists or strings.
        overwrite: replace an existing store, once the new one is complete.
        keep_interrupted: False gives an interrupted store no name: all episodes or none.
        extra: columns that are no observations, see `columns.Layout`.
        job: names the work, so that a killed process can be continued.

    Raises:
        FlowleapError: `path` exists, a key cannot be a column name, an episode does not fit the Spec, nothing
            was added, the same job is running already, or the file system refuses (full disk, permissions).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: Spec,
        attrs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        keep_interrupted: bool = True,
        extra: Mapping[str, ObsKey] | None = None,
        job: str | None = None,
    ) -> None:
        self.spec = spec
        self.attrs: dict[str, Any] = dict(attrs or {})
        self._keep_interrupted = keep_interrupted
        self._layout = Layout(spec, extra)
        self._target = Target(path, overwrite, "zarr store", is_store, job)
        self.path = self._target.path
        self._journal = Journal(self._target.temporary / "journal.jsonl", job) if job else None
        self._lengths: list[int] = []  # of the episodes already streamed out
        self._seeds: list[int] = []
        self._streamed = 0  # frames
        self._pending: list[tuple[int, int]] = []  # length and seed of the episodes in the block
        self._filled = 0  # frames
        widths = (dtype.itemsize * int(np.prod(shape)) for shape, dtype in self._layout.columns.values())
        self._capacity = max(1, _BUFFER_BYTES // sum(widths))
        self._buffer: Episode = {}
        self._block: Episode = {}  # what the next flush writes: the buffer, or one episode too long for it
        self._arrays: dict[str, zarr.Array] = {}

    @property
    def n_episodes(self) -> int:
        """Episodes added so far."""
        return len(self._lengths) + len(self._pending)

    @property
    def n_frames(self) -> int:
        """Frames added so far."""
        return self._streamed + self._filled

    def add(self, episode: Mapping[str, ArrayLike], seed: int | None = None) -> None:
        """Append one episode: key -> [T, *shape], equal T >= 1 for every key of the Spec and `action`."""
        columns = self._layout.fit(episode, f"episode {self.n_episodes}")
        length = len(columns[ACTION])
        if self._filled + length > self._capacity:
            self._flush()
        if length <= self._capacity:
            self._block = self._buffer = self._buffer or {
                key: np.empty((self._capacity, *shape), dtype)
                for key, (shape, dtype) in self._layout.columns.items()
            }
            for key, values in columns.items():
                self._buffer[key][self._filled : self._filled + length] = values
        else:
            self._block = columns
        self._pending.append((length, NO_SEED if seed is None else int(seed)))
        self._filled += length
        if self._filled >= self._capacity:
            self._flush()

    def __enter__(self) -> EpisodeWriter:
        with self._target.errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._journal is not None:
                self._lengths, self._seeds = self._journal.open()
                self._streamed = sum(self._lengths)
            if not self._lengths or not self._reopen():
                self._create()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        terminated = kind is not None and issubclass(kind, SystemExit)  # by SIGTERM: nobody said to give up
        keep = kind is None or (interrupted and self._keep_interrupted and self.n_episodes > 0)
        try:
            if keep:
                with self._target.errors():
                    self._finalise()
        finally:
            if self._journal is not None:
                self._journal.close()
            if not terminated or self._journal is None:
                self._target.discard()

    def _create(self) -> None:
        """Begin an empty store."""
        if self._journal is not None:
            self._journal.restart()
        self._lengths, self._seeds, self._streamed = [], [], 0
        self._group = zarr.open_group(self._target.temporary, mode="a", zarr_format=3)
        data = self._group.require_group("data")
        self._group.require_group("meta")
        images = {key for key, obs in self.spec.observations.items() if obs.kind == "rgb"}
        for key, (shape, dtype) in self._layout.columns.items():
            # Training draws frames at random: an image is a chunk of its own, so that no other is read with it.
            rows = (
                1 if key in images else max(1, _CHUNK_BYTES // max(1, dtype.itemsize * int(np.prod(shape))))
            )
            # Kept open: an array opened again has lost `write_empty_chunks` (it is no part of the format).
            self._arrays[key] = data.create_array(
                key,
                shape=(0, *shape),
                chunks=(rows, *shape),
                dtype=dtype,
                compressors=ZstdCodec(level=_ZSTD_LEVEL, checksum=True),
                config={"write_empty_chunks": True},
                overwrite=True,
            )

    def _reopen(self) -> bool:
        """Open what a killed process left, cut to the episodes of the journal; False where it does not fit."""
        try:
            self._group = zarr.open_group(self._target.temporary, mode="r+", zarr_format=3)
            for key, (shape, dtype) in self._layout.columns.items():
                array = self._group[f"data/{key}"]
                assert isinstance(array, zarr.Array)
                if array.shape[1:] != shape or array.shape[0] < self._streamed or array.dtype != dtype:
                    return False
                array.resize((self._streamed, *shape))
                self._arrays[key] = array.with_config({"write_empty_chunks": True})
        except (KeyError, ValueError, OSError):
            return False
        return True

    def _flush(self) -> None:
        """Stream the pending episodes out. May be repeated after an interruption: the rows are the same."""
        if not self._pending:
            return
        start, stop = self._streamed, self.n_frames
        lengths, seeds = [length for length, _ in self._pending], [seed for _, seed in self._pending]
        with self._target.errors():
            for key, array in self._arrays.items():
                array.resize((stop, *array.shape[1:]))
                array[start:stop] = self._block[key][: stop - start]
            if self._journal is not None:
                self._journal.append(lengths, seeds)
        self._lengths, self._seeds = self._lengths + lengths, self._seeds + seeds
        self._streamed, self._pending, self._filled = stop, [], 0

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
                compressors=ZstdCodec(level=_ZSTD_LEVEL, checksum=True),
                config={"write_empty_chunks": True},
                overwrite=True,
            )
        own = {SPEC_ATTRIBUTE: self.spec.to_dict(), FORMAT_ATTRIBUTE: FORMAT_VERSION}
        self._group.attrs.update(json.loads(json.dumps({**self.attrs, **own}, default=plain)))
        if self._journal is not None:
            self._journal.remove()
        self._target.publish()


def is_store(path: Path) -> bool:
    """Whether a folder has the metadata file of a zarr group."""
    return any((path / marker).is_file() for marker in ("zarr.json", ".zgroup"))
