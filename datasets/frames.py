"""Columns of images and points that are too large to hold: frames read from the store when a batch asks for them.

Colours stay uint8 until they are on the training device. A column that fits the caller's budget is decoded once into
memory; any other is read frame by frame, with no more in memory than the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import CACHE_BYTES, free_memory
from flowleap.datasets.images import Picture
from flowleap.policy.core.errors import FlowleapError

_BLOCK_BYTES = 2**20
_SLOW_CHUNK_FRAMES = 16  # reading single frames out of longer chunks would decode more than it uses


class ImageStore(Protocol):
    """What `Frames` asks of a store: the zarr array of a column, and the ways to check, to read and to convert it."""

    path: Path
    pictures: Mapping[str, Picture]

    def picture(self, key: str, frames: NDArray, where: str) -> NDArray: ...
    def array(self, key: str) -> Any: ...
    def check_files(self, key: str) -> None: ...
    def read_rows(self, key: str, start: int, stop: int) -> NDArray: ...
    def read_frames(self, key: str, frames: NDArray[np.int64]) -> NDArray: ...
    def not_finite_at(self, key: str, frames: Sequence[int]) -> FlowleapError: ...


def rows_of_chunks(array: Any) -> int:
    """Frames that are stored together."""
    return (array.shards or array.chunks)[0]


class Frames:
    """One column of images or points of a store, indexed like an array by `take`: rgb uint8 [N, H, W, 3], others float.

    Args:
        store: the dataset; its `pictures` say what is made of the images when they are read.
        key: the column.
        budget: bytes that this column may take in memory. 0 reads every frame from the disk, each time.
        rows: the frames of the column that are there, int64 [N]; all by default.
        finite: raise where a number is NaN or infinite; of depth, that is a place where nothing was measured.

    Attributes:
        nbytes: bytes of all frames, decoded.
        cached: whether they are all in memory.

    Raises:
        FlowleapError: a chunk is missing or damaged, a float image holds other values, a number is not finite, or the
            column neither fits the budget nor can be read frame by frame.
    """

    def __init__(
        self,
        store: ImageStore,
        key: str,
        budget: int = CACHE_BYTES,
        rows: NDArray[np.int64] | None = None,
        finite: bool = False,
    ) -> None:
        self.key, self._store, self._rows = key, store, rows
        array = store.array(key)
        picture = store.pictures.get(key)
        frame = picture.key.shape if picture else array.shape[1:]
        self.shape: tuple[int, ...] = (array.shape[0] if rows is None else len(rows), *frame)
        self.dtype = np.dtype(picture.key.dtype if picture else array.dtype)
        self._finite = array.dtype.kind == "f" and (finite or self.dtype == np.uint8)
        self.nbytes = self.dtype.itemsize * math.prod(self.shape)
        self.cached = self.nbytes <= min(budget, free_memory() // 2)
        if self.cached:
            self._memory = self._load()
            return
        chunk = rows_of_chunks(array)
        costly = self.dtype == np.uint8 and array.dtype != np.uint8
        if costly or chunk > _SLOW_CHUNK_FRAMES:
            raise FlowleapError(
                f"dataset '{store.path}': column '{key}' ({array.dtype}, {chunk} frames a chunk) takes "
                f"{self.nbytes / 2**20:.0f} MB as {self.dtype}, more than the cache may hold "
                "(data.image_cache_mb), and cannot be read frame by frame: "
                f"`flowleap convert source={store.path} out=NAME.zarr` once"
            )
        store.check_files(key)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: NDArray[np.integer], axis: int = 0) -> NDArray:
        """Return the frames `rows` (integers, any shape): [*rows.shape, H, W, channels]."""
        assert axis == 0
        if self.cached:
            return self._memory.take(rows, axis=0)
        rows = rows if self._rows is None else self._rows[rows]
        frames, place = np.unique(rows, return_inverse=True)  # windows of neighbours share frames
        images = self._store.read_frames(self.key, frames)
        if self._finite and (bad := frames[_broken(images)].tolist()):
            raise self._store.not_finite_at(self.key, bad)
        return self._store.picture(self.key, images, "frames of a batch")[place.reshape(rows.shape)]

    def describe(self) -> str:
        """One line for people: size, and where the frames are."""
        size = f"{self.nbytes / 2**20:.0f} MB {self.dtype}"
        return f"{size} in memory" if self.cached else f"{size} on disk, read a batch at a time"

    def _load(self) -> NDArray:
        """Read everything, in blocks: the stored form is never whole in memory."""
        memory = np.empty(self.shape, self.dtype)
        array = self._store.array(self.key)
        width = max(1, array.dtype.itemsize * math.prod(array.shape[1:]))
        chunk, n = rows_of_chunks(array), array.shape[0]
        step = max(1, _BLOCK_BYTES // width // chunk) * chunk
        rows = np.arange(n) if self._rows is None else self._rows
        order = np.argsort(rows, kind="stable")
        bad: list[int] = []
        for start in range(0, n, step):
            stop = min(start + step, n)
            here = order[slice(*np.searchsorted(rows, (start, stop), sorter=order))]
            if len(here) == 0:
                continue
            block = self._store.read_rows(self.key, start, stop)
            if self._rows is not None:
                block = block[rows[here] - start]
            if self._finite and (broken := _broken(block)).any():
                bad += rows[here][broken].tolist()
                continue
            memory[here] = self._store.picture(self.key, block, f"frames {start} to {stop - 1}")
        if bad:
            raise self._store.not_finite_at(self.key, bad)
        return memory


def _broken(frames: NDArray) -> NDArray[np.bool_]:
    """Which frames [n, ...] hold a number that is not finite; [n]."""
    return ~np.isfinite(frames).reshape(len(frames), -1).all(axis=1)


class Mirrored:
    """Frames, and after them their mirror images, which are made when they are read; see `Frames` for the rest.

    `mirror` turns images [n, H, W, channels] or points [n, N, channels] into the same shape.
    """

    def __init__(self, frames: Frames, mirror: Callable[[NDArray], NDArray]) -> None:
        self._frames, self._mirror, self.dtype = frames, mirror, frames.dtype
        self.shape = (2 * len(frames), *frames.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: NDArray[np.integer], axis: int = 0) -> NDArray:
        """Return the frames `rows` (integers, any shape): [*rows.shape, H, W, channels]."""
        images = self._frames.take(rows % len(self._frames), axis)
        second = rows >= len(self._frames)
        images[second] = self._mirror(images[second])
        return images

    def describe(self) -> str:
        """One line for people: size, and where the frames are."""
        return f"{self._frames.describe()}, and mirrored"
