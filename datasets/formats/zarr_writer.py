"""Writing an episode store: streamed, checked against the Spec, visible under its name only when complete."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from flowleap.datasets.columns import Episode, plain
from flowleap.datasets.formats.base import Writer
from flowleap.datasets.formats.zarr_journal import Journal
from flowleap.policy.core.spec import ObsKey, Spec

SPEC_ATTRIBUTE = "flowleap_spec"
FORMAT = ("flowleap_format", 1)  # an attribute, and the version that is written and read
NO_SEED = -1  # what `meta/episode_seeds` holds for an episode without a seed

_CHUNK_BYTES = 2 * 2**20
# Level 3 takes twice the time for less than 1 % of the bytes of recorded floats.
_CODEC = ZstdCodec(level=1, checksum=True)
_CLOUDS = 4  # of points, in a chunk
_BUFFER_BYTES = 64 * 2**20


def is_store(path: Path) -> bool:
    """Whether a folder has the metadata file of a zarr group."""
    return any((path / marker).is_file() for marker in ("zarr.json", ".zgroup"))


class EpisodeWriter(Writer):
    """Context manager that writes episodes into a new zarr v3 store; see `Writer` for the other arguments.

    Episodes are buffered up to 64 MiB and streamed into a hidden folder beside `path`, which takes the name
    `path` when the block ends. Any exception removes the hidden folder, except `KeyboardInterrupt` and `SystemExit`
    (SIGTERM) after at least one episode: then what was recorded is kept, and the interrupt goes on.

    Every chunk carries a checksum and is written even where it is all zeros, so that a reader notices a
    damaged or missing file.

    A writer with a `job` outlives `kill -9` and SIGTERM: the next one with the same path and job begins with the
    episodes that were streamed out (`n_episodes` says how many), and the caller goes on with the one after them.

    Args:
        keep_interrupted: False gives an interrupted store no name: all episodes or none.
        job: names the work, so that a killed process can be continued; no two may be at the same one.
    """

    kind = "zarr store"
    is_kind = staticmethod(is_store)

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
        self._job, self._keep_interrupted = job, keep_interrupted
        super().__init__(path, spec, attrs, overwrite, extra)
        self._journal = Journal(self._temporary / "journal.jsonl", job) if job else None
        self._lengths: list[int] = []  # of the episodes already streamed out
        self._seeds: list[int] = []
        self._streamed = 0  # frames
        self._pending: list[tuple[int, int]] = []  # length and seed of the episodes in the block
        self._filled = 0  # frames
        widths = (dtype.itemsize * math.prod(shape) for shape, dtype in self._layout.columns.values())
        self._capacity = max(1, _BUFFER_BYTES // sum(widths))
        self._buffer: Episode = {}
        self._block: Episode = {}  # what the next flush writes: the buffer, or one episode too long for it
        self._arrays: dict[str, zarr.Array] = {}

    def _write(self, columns: Episode, length: int, seed: int | None) -> None:
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

    def _open(self) -> None:
        if self._journal is not None:
            self._lengths, self._seeds = self._journal.open()
            self._streamed = sum(self._lengths)
        if not self._lengths or not self._reopen():
            self._create()
        self.n_episodes, self.n_frames = len(self._lengths), self._streamed

    def _keeps(self, kind: type[BaseException] | None) -> bool:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        recorded = bool(self._lengths or self._pending)
        return kind is None or (interrupted and self._keep_interrupted and recorded)

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def _create(self) -> None:
        """Begin an empty store."""
        if self._journal is not None:
            self._journal.restart()
        self._lengths, self._seeds, self._streamed = [], [], 0
        self._group = zarr.open_group(self._temporary, mode="a", zarr_format=3)
        self._group.require_group("data")
        self._group.require_group("meta")
        for key, (shape, dtype) in self._layout.columns.items():
            observed = self.spec.observations.get(key)
            rows = _CHUNK_BYTES // max(1, dtype.itemsize * math.prod(shape))
            # Training draws windows at random: an image is a chunk of its own, so that no other is read with it, and
            # clouds, which are smaller, lie with a few neighbours.
            if observed is not None and observed.dense:
                rows = 1 if observed.image else min(rows, _CLOUDS)
            # Kept open: an array opened again has lost `write_empty_chunks` (it is no part of the format).
            sizes = {"shape": (0, *shape), "chunks": (max(1, rows), *shape)}
            self._arrays[key] = self._new_array(f"data/{key}", dtype=dtype, **sizes)

    def _new_array(self, name: str, **fields: Any) -> zarr.Array:
        return self._group.create_array(
            name, compressors=_CODEC, config={"write_empty_chunks": True}, overwrite=True, **fields
        )

    def _reopen(self) -> bool:
        """Open what a killed process left, cut to the episodes of the journal; False where it does not fit."""
        try:
            self._group = zarr.open_group(self._temporary, mode="r+", zarr_format=3)
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
        start, stop = self._streamed, self._streamed + self._filled
        lengths, seeds = [length for length, _ in self._pending], [seed for _, seed in self._pending]
        for key, array in self._arrays.items():
            array.resize((stop, *array.shape[1:]))
            array[start:stop] = self._block[key][: stop - start]
        if self._journal is not None:
            self._journal.append(lengths, seeds)
        self._lengths, self._seeds = self._lengths + lengths, self._seeds + seeds
        self._streamed, self._pending, self._filled = stop, [], 0

    def _finish(self) -> None:
        self._flush()
        meta = {"episode_ends": np.cumsum(self._lengths, dtype=np.int64)}
        if any(seed != NO_SEED for seed in self._seeds):
            meta["episode_seeds"] = np.array(self._seeds, dtype=np.int64)
        for name, values in meta.items():
            self._new_array(f"meta/{name}", data=values, chunks=values.shape)
        own = {SPEC_ATTRIBUTE: self.spec.to_dict(), FORMAT[0]: FORMAT[1]}
        self._group.attrs.update(json.loads(json.dumps({**self.attrs, **own}, default=plain)))
        if self._journal is not None:
            self._journal.remove()
