"""Images read lazily: the same frames by every way, bounded memory, damage that is named."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import Blosc, Zstd

from flowleap.datasets.formats.zarr_store import EpisodeStore, EpisodeWriter
from flowleap.datasets.frames import Frames, Mirrored
from flowleap.datasets.windows import Windows
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec

SPEC = Spec({"camera": ObsKey((24, 32, 3), "uint8", "rgb"), "joints": ObsKey((2,))}, 2, 2, 4, 2)


def write(path: Path, lengths: tuple[int, ...] = (9, 14), spec: Spec = SPEC) -> np.ndarray:
    """Write a store of random images; return them all."""
    rng = np.random.default_rng(0)
    shape = spec.observations["camera"].shape
    images = [rng.integers(0, 256, (n, *shape), np.uint8) for n in lengths]
    with EpisodeWriter(path, spec) as writer:
        for block in images:
            low = {key: rng.normal(size=(len(block), 2)).astype(np.float32) for key in ("joints", "action")}
            writer.add({"camera": block, **low})
    return np.concatenate(images)


def write_foreign(path: Path, images: np.ndarray, chunk: int, dtype: str, **codec: object) -> None:
    """A zarr v2 replay buffer, as other projects write them."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    shape = (chunk, *images.shape[1:])
    array = group.create_array("data/camera", shape=images.shape, chunks=shape, dtype=dtype, **codec)
    array[:] = images
    action = group.create_array("data/action", shape=(len(images), 2), chunks=(len(images), 2), dtype="f4")
    action[:] = 1.0
    group.create_array("meta/episode_ends", data=np.array([len(images)]))


def test_the_writer_gives_every_image_a_chunk_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr")
    store = EpisodeStore(tmp_path / "a.zarr")
    assert store.array("camera").chunks == (1, 24, 32, 3)
    assert store.array("joints").chunks[0] > 23


ROWS = [np.array([3]), np.array([[0, 1], [22, 0]]), np.array([[5, 5], [5, 4], [22, 21]])]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("budget", [0, 2**30])
def test_frames_are_those_that_were_written(tmp_path: Path, rows: np.ndarray, budget: int) -> None:
    images = write(tmp_path / "a.zarr")
    frames = Frames(EpisodeStore(tmp_path / "a.zarr"), "camera", budget)
    assert frames.cached is (budget > 0)
    assert ("in memory" if budget else "on disk") in frames.describe()
    taken = frames.take(rows)
    assert taken.dtype == np.uint8
    np.testing.assert_array_equal(taken, images[rows])


@pytest.mark.parametrize(
    ("chunk", "dtype", "codec", "budget"),
    [
        (1, "u1", {"compressors": Blosc("lz4")}, 0),
        (1, "u1", {"compressors": None}, 0),
        (4, "u1", {"compressors": Blosc("zstd")}, 0),
        (4, "u1", {}, 2**30),
        (5, "f4", {}, 2**30),
    ],
)
def test_other_projects_stores_read_the_same(
    tmp_path: Path, chunk: int, dtype: str, codec: dict[str, object], budget: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (13, 16, 16, 3), np.uint8)
    write_foreign(tmp_path / "a.zarr", images, chunk, dtype, **codec)
    frames = Frames(EpisodeStore(tmp_path / "a.zarr"), "camera", budget)
    np.testing.assert_array_equal(frames.take(np.arange(13)), images)


@pytest.mark.parametrize("budget", [0, 2**30])
def test_mirror_images_follow_the_frames(tmp_path: Path, budget: int) -> None:
    images = write(tmp_path / "a.zarr")
    frames = Mirrored(Frames(EpisodeStore(tmp_path / "a.zarr"), "camera", budget), lambda x: x[:, :, ::-1])
    both = np.concatenate([images, images[:, :, ::-1]])
    rows = np.array([[0, 23], [45, 22], [23, 23]])
    assert frames.shape == both.shape
    for _ in range(2):  # what is cached stays as it is
        np.testing.assert_array_equal(frames.take(rows), both[rows])


def test_a_zip_reads_the_same(tmp_path: Path) -> None:
    images = write(tmp_path / "a.zarr")
    shutil.make_archive(str(tmp_path / "a.zarr"), "zip", tmp_path / "a.zarr")
    frames = Frames(EpisodeStore(tmp_path / "a.zarr.zip"), "camera", 0)
    np.testing.assert_array_equal(frames.take(np.array([2, 0, 2])), images[[2, 0, 2]])


def test_float_images_need_memory_or_a_conversion_and_0_to_255(tmp_path: Path) -> None:
    images = np.zeros((8, 16, 16, 3), np.float32)
    write_foreign(tmp_path / "a.zarr", images, 4, "f4")
    with pytest.raises(FlowleapError, match=r"'camera' \(float32.*flowleap convert"):
        Frames(EpisodeStore(tmp_path / "a.zarr"), "camera", 0)
    many = np.ones((100, 16, 16, 3), np.float32)
    many[::12] = 200  # some of these are the frames by which the layout is recognised
    many[5] = 300
    write_foreign(tmp_path / "b.zarr", many, 4, "f4")
    with pytest.raises(
        FlowleapError, match=r"'camera' holds images with numbers from 1 to 300, not 0 to 255"
    ):
        Frames(EpisodeStore(tmp_path / "b.zarr"), "camera")


@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_damage_is_named(tmp_path: Path, harm: str) -> None:
    write(tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / "data" / "camera" / "c" / "7" / "0" / "0" / "0"
    if harm == "remove":
        file.unlink()
        with pytest.raises(FlowleapError, match=r"missing.*camera/c/7/0/0/0"):
            Frames(EpisodeStore(tmp_path / "a.zarr"), "camera", 0)
        return
    file.write_bytes(file.read_bytes()[:50])
    frames = Frames(EpisodeStore(tmp_path / "a.zarr"), "camera", 0)
    frames.take(np.array([6]))
    with pytest.raises(FlowleapError, match=r"camera/c/7/0/0/0 is truncated or damaged"):
        frames.take(np.array([6, 7]))


def test_the_loaders_memory_is_that_of_a_batch(tmp_path: Path) -> None:
    """A column of 22 MB: batches of 8 windows, 16 frames, take what they hold; a cache takes the column, once."""
    spec = Spec({**SPEC.observations, "camera": ObsKey((96, 96, 3), "uint8", "rgb")}, 2, 2, 4, 2)
    images = write(tmp_path / "a.zarr", (300, 500), spec)
    store = EpisodeStore(tmp_path / "a.zarr")
    rng = np.random.default_rng(0)
    lowdim = store.read(["joints", "action"])

    def peak(budget: int) -> int:
        tracemalloc.start()
        columns = {**lowdim, "camera": Frames(store, "camera", budget)}
        windows = Windows(columns, store.episode_ends, spec)
        for _ in range(20):
            batch = windows.gather(rng.integers(0, len(windows), 8))
            assert batch["obs"]["camera"].dtype == np.uint8
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    batch_bytes = 16 * images[0].nbytes
    assert peak(0) < 6 * batch_bytes < 0.15 * images.nbytes
    assert images.nbytes < peak(2**30) < images.nbytes + 6 * batch_bytes


@pytest.mark.parametrize("budget", [0, 2**30])
def test_a_chunk_that_holds_less_than_a_frame_is_damaged(tmp_path: Path, budget: int) -> None:
    """Its rest would be whatever the memory held before; a frame that ends in the marks themselves is none."""
    write(tmp_path / "a.zarr")
    folder = tmp_path / "a.zarr" / "data" / "camera" / "c"
    for frame, value in ((3, 1), (4, 2)):
        marked = np.full((24, 32, 3), value, np.uint8)
        (folder / str(frame) / "0" / "0" / "0").write_bytes(Zstd(checksum=True).encode(marked))
    frames = Frames(EpisodeStore(tmp_path / "a.zarr"), "camera", budget)
    assert frames.take(np.array([3, 4])).mean((1, 2, 3)).tolist() == [1.0, 2.0]
    (folder / "7" / "0" / "0" / "0").write_bytes(Zstd(checksum=True).encode(np.zeros(100, np.uint8)))
    with pytest.raises(
        FlowleapError,
        match=r"(c/7/0/0/0|chunk 7 of data/camera) .*truncated or damaged \(.* 100, expected 2304",
    ):
        Frames(EpisodeStore(tmp_path / "a.zarr"), "camera", budget).take(np.array([7]))
