"""Image columns that are too large to hold: frames read from the store when a batch asks for them.

Images stay uint8 until they are on the training device. A column that fits the caller's budget is decoded once into
memory; any other is read frame by frame, with no more in memory than the batch. For stores that hold one frame a
chunk (those of `EpisodeWriter`) a frame costs one small file and one decompression, around zarr's own machinery,
which takes twenty times as long for chunks of this size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ZstdCodec

from flowleap.datasets.columns import free_memory, to_uint8
from flowleap.datasets.formats.zarr_store import EpisodeStore
from flowleap.policy.core.errors import FlowleapError

CACHE_BYTES = 1024 * 2**20
_BLOCK_BYTES = 32 * 2**20
_SLOW_CHUNK_FRAMES = 16  # reading single frames out of longer chunks would decode more than it uses

Decode = Callable[[bytes, NDArray[np.uint8]], object]


class Frames:
    """One rgb column of a store, uint8 [N, H, W, 3], indexed like an array by `take`.

    Args:
        store: the dataset.
        key: the column; float images that hold whole numbers from 0 to 255 are converted.
        budget: bytes that this column may take in memory. 0 reads every frame from the disk, each time.

    Attributes:
        shape: (N, H, W, 3).
        dtype: uint8.
        nbytes: bytes of all frames, decoded.
        cached: whether they are all in memory.

    Raises:
        FlowleapError: a chunk is missing or damaged, a float image holds other values, or the column neither fits the
            budget nor can be read frame by frame.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, store: EpisodeStore, key: str, budget: int = CACHE_BYTES) -> None:
        self.key, self._store = key, store
        self.shape = (store.n_frames, *store.shape(key))
        self._memory: NDArray[np.uint8] | None = None
        self._files: _ChunkFiles | None = None
        self._array = store.array(key)
        if store.dtype(key) == np.uint8:
            self._files = _ChunkFiles.of(store.path, self._array)
        if self.nbytes <= min(budget, free_memory() // 2):
            self._memory = self._load()
            return
        rows = (self._array.shards or self._array.chunks)[0]
        if store.dtype(key) != np.uint8 or rows > _SLOW_CHUNK_FRAMES:
            raise FlowleapError(
                f"dataset '{store.path}': image column '{key}' ({store.dtype(key)}, {rows} frames a chunk) takes "
                f"{self.nbytes / 2**20:.0f} MB as uint8, more than the image cache may hold (data.image_cache_mb), and "
                f"cannot be read frame by frame: `flowleap convert source={store.path} out=NAME.zarr` once"
            )
        store.check_files(key)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all frames, decoded."""
        return int(np.prod(self.shape))

    @property
    def cached(self) -> bool:
        """Whether all frames are in memory."""
        return self._memory is not None

    def take(self, rows: NDArray[np.integer], axis: int = 0) -> NDArray[np.uint8]:
        """Return the frames `rows` (integers, any shape): uint8 [*rows.shape, H, W, 3]."""
        assert axis == 0
        if self._memory is not None:
            return self._memory.take(rows, axis=0)
        frames, place = np.unique(rows, return_inverse=True)  # windows of neighbours share frames
        read = np.empty((len(frames), *self.shape[1:]), np.uint8)
        if self._files is not None:
            for i, frame in enumerate(frames.tolist()):
                self._files.read(frame, read[i])
        else:
            try:
                read[:] = self._array.oindex[frames]
            except Exception as error:  # each codec has its own way to fail
                raise FlowleapError(
                    f"dataset '{self._store.path}': '{self.key}' is truncated or damaged ({error}); "
                    "copy the dataset again"
                ) from error
        return read[place.reshape(rows.shape)]

    def describe(self) -> str:
        """One line for people: size, and where the frames are."""
        size = f"{self.nbytes / 2**20:.0f} MB"
        return f"{size} uint8 in memory" if self.cached else f"{size} uint8 on disk, read a batch at a time"

    def _load(self) -> NDArray[np.uint8]:
        """Read everything, in blocks: the stored form is never whole in memory."""
        memory = np.empty(self.shape, np.uint8)
        if self._files is not None:
            self._store.check_files(self.key)
            for frame, out in enumerate(memory):
                self._files.read(frame, out)
            return memory
        width = max(1, self._store.dtype(self.key).itemsize * self.nbytes // max(1, len(self)))
        chunk = (self._array.shards or self._array.chunks)[0]
        step = max(1, _BLOCK_BYTES // width // chunk) * chunk
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            block = self._store.read_rows(self.key, start, stop)
            memory[start:stop] = to_uint8(block, f"dataset '{self._store.path}': '{self.key}'")
        return memory


class Mirrored:
    """Frames, and after them their mirror images, which are made when they are read; see `Frames` for the rest.

    Args:
        frames: N images.
        mirror: uint8 [n, H, W, 3] -> the same shape.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, frames: Frames, mirror: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
        self._frames, self._mirror = frames, mirror
        self.shape = (2 * len(frames), *frames.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: NDArray[np.integer], axis: int = 0) -> NDArray[np.uint8]:
        """Return the frames `rows` (integers, any shape): uint8 [*rows.shape, H, W, 3]."""
        images = self._frames.take(rows % len(self._frames), axis)
        second = rows >= len(self._frames)
        images[second] = self._mirror(images[second])
        return images

    def describe(self) -> str:
        """One line for people: size, and where the frames are."""
        return f"{self._frames.describe()}, and mirrored"


class _ChunkFiles:
    """Chunks of one frame in a folder: file names, and what decompresses them."""

    def __init__(self, root: Path, array: zarr.Array, decode: Decode) -> None:
        self._decode = decode
        self._folder = os.path.join(root, array.path, "")
        self._name = array.metadata.encode_chunk_key
        self._rest = (0,) * (array.ndim - 1)

    @classmethod
    def of(cls, root: Path, array: zarr.Array) -> _ChunkFiles | None:
        """Return None where the store is no folder, or an array is laid out or compressed in another way."""
        plain = not array.shards and array.chunks == (1, *array.shape[1:]) and not array.filters
        if not root.is_dir() or not plain or array.metadata.to_dict().get("order", "C") != "C":
            return None
        codecs = array.compressors
        if len(codecs) != 1:
            return None
        codec: Any = codecs[0]
        if isinstance(codec, ZstdCodec | numcodecs.Zstd):
            return cls(root, array, numcodecs.Zstd().decode)
        if isinstance(codec, BloscCodec | numcodecs.Blosc):
            return cls(root, array, numcodecs.Blosc().decode)
        return None

    def read(self, frame: int, out: NDArray[np.uint8]) -> None:
        """Decode one frame into `out` [H, W, 3]."""
        file = self._folder + self._name((frame, *self._rest))
        try:
            with open(file, "rb", buffering=0) as stream:
                self._fill(stream.read(), out)
        except (OSError, RuntimeError, ValueError) as error:
            raise FlowleapError(
                f"chunk {file} is truncated or damaged ({error}); copy the dataset again"
            ) from error

    def _fill(self, chunk: bytes, out: NDArray[np.uint8]) -> None:
        """Decode, and raise where the chunk holds less than `out`, of which the decoders say nothing."""
        last = out.reshape(-1)[-1:]
        for mark in (1, 2):  # a byte of the image may equal one mark, not both
            last[:] = mark
            self._decode(chunk, out)
            if last[0] != mark:
                return
        raise ValueError(f"it holds less than {out.nbytes} bytes")
