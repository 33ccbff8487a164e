"""Images in the layouts that recorders leave, in every format: the right pixels, or a word about why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flowleap.datasets.dataset import Dataset, open_dataset
from flowleap.datasets.frames import Frames
from flowleap.datasets.images import Picture, recognise
from flowleap.datasets.selection import Selected
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.core.views import View, choose_view

N, H, W = 12, 20, 24
ENDS = np.array([5, 12])
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (N, H, W, 3), np.uint8)
GREY = np.repeat(COLOUR[..., :1], 3, axis=-1)
MILLIMETRES = RNG.integers(0, 4000, (N, H, W), np.uint16)
ALPHA = RNG.integers(0, 256, (N, H, W, 1), np.uint8)
Column = np.ndarray

LAYOUTS: dict[str, tuple[Column, Column]] = {  # name -> as it lies, as it is read
    "hwc": (COLOUR, COLOUR),
    "chw": (np.moveaxis(COLOUR, -1, 1), COLOUR),
    "rgba": (np.concatenate([COLOUR, ALPHA], -1), COLOUR),
    "argb_first": (np.moveaxis(np.concatenate([COLOUR, ALPHA], -1), -1, 1), COLOUR),
    "grey": (GREY[..., 0], GREY),
    "grey1": (GREY[..., :1], GREY),
    "1grey": (GREY[..., 0][:, None], GREY),
    "float01": (COLOUR / np.float32(255), COLOUR),
    "double01_chw": (np.moveaxis(COLOUR / 255.0, -1, 1), COLOUR),
    "half01": ((COLOUR / np.float32(255)).astype(np.float16), COLOUR),
    "float255": (COLOUR.astype(np.float32), COLOUR),
    "float255_chw": (np.moveaxis(COLOUR, -1, 1).astype(np.float32), COLOUR),
    "int64": (COLOUR.astype(np.int64), COLOUR),
    "grey01": (GREY[..., 0] / np.float32(255), GREY),
    "grey255": (GREY[..., :1].astype(np.float32), GREY),
    "mask": (GREY[..., 0] > 99, 255 * (GREY > 99).astype(np.uint8)),
    "depth_mm": (MILLIMETRES, MILLIMETRES[..., None].astype(np.float32)),
    "depth_m": (MILLIMETRES / np.float32(1000), MILLIMETRES[..., None] / np.float32(1000)),
    "depth_m1": (MILLIMETRES[..., None] / np.float32(1000), MILLIMETRES[..., None] / np.float32(1000)),
}
STATE = RNG.normal(size=(N, 3)).astype(np.float32)
ACTION = RNG.normal(size=(N, 2)).astype(np.float32)


def write_zarr(path: Path, columns: dict[str, Column]) -> Path:
    group = zarr.open_group(path / "a.zarr", mode="w", zarr_format=2)
    for key, x in columns.items():
        chunks = (1, *x.shape[1:]) if x.ndim > 2 else x.shape
        array = group.create_array(
            f"data/{key}", shape=x.shape, dtype=x.dtype, chunks=chunks, config={"write_empty_chunks": True}
        )
        array[:] = x
    group.create_array("meta/episode_ends", data=ENDS)
    return path / "a.zarr"


def write_npz(path: Path, columns: dict[str, Column]) -> Path:
    np.savez(path / "a.npz", **{k: np.ascontiguousarray(x) for k, x in columns.items()}, episode_ends=ENDS)  # type: ignore[arg-type]
    return path / "a.npz"


def write_npz_folder(path: Path, columns: dict[str, Column]) -> Path:
    (path / "npz").mkdir()
    for i, part in enumerate((slice(0, 5), slice(5, 12))):
        np.savez(path / "npz" / f"{i}.npz", **{k: np.ascontiguousarray(x[part]) for k, x in columns.items()})  # type: ignore[arg-type]
    return path / "npz"


def write_robomimic(path: Path, columns: dict[str, Column]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "a.hdf5", "w") as file:
        for i, part in enumerate((slice(0, 5), slice(5, 12))):
            for key, x in columns.items():
                name = "actions" if key == "action" else f"obs/{key}"
                file[f"data/demo_{i}/{name}"] = x[part]
    return path / "a.hdf5"


def write_minari(path: Path, columns: dict[str, Column]) -> Path:
    h5py = pytest.importorskip("h5py")
    (path / "minari").mkdir()
    (path / "minari" / "metadata.json").write_text(json.dumps({"total_episodes": 2}))
    with h5py.File(path / "minari" / "main_data.hdf5", "w") as file:
        for i, part in enumerate((slice(0, 5), slice(5, 12))):
            for key, x in columns.items():
                one_more = np.concatenate([x[part], x[part][-1:]])
                name = "actions" if key == "action" else f"observations/{key}"
                file[f"episode_{i}/{name}"] = x[part] if key == "action" else one_more
            for name in ("rewards", "terminations", "truncations"):
                file[f"episode_{i}/{name}"] = np.zeros(len(STATE[part]), np.float32)
    return path / "minari"


WRITERS: dict[str, Callable[[Path, dict[str, Column]], Path]] = {
    "zarr": write_zarr,
    "npz": write_npz,
    "npz_folder": write_npz_folder,
    "robomimic": write_robomimic,
    "minari": write_minari,
}


def columns_of(layout: str, key: str = "camera") -> dict[str, Column]:
    return {key: LAYOUTS[layout][0], "state": STATE, "action": ACTION}


def opened(name: str, path: Path, columns: dict[str, Column], **options: Any) -> Dataset:
    if name == "arrays":
        dataset = Dataset.from_arrays(columns, ENDS)
        return dataset.resize(**options) if options else dataset
    return open_dataset(WRITERS[name](path, columns), **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["arrays", *WRITERS])
def test_every_layout_in_every_format_has_the_right_pixels(name: str, layout: str, tmp_path: Path) -> None:
    expected = LAYOUTS[layout][1]
    dataset = opened(name, tmp_path, columns_of(layout))
    key = dataset.spec.observations["camera"]
    depth = layout.startswith("depth")
    assert (key.kind, key.shape, key.dtype) == (
        ("depth", (H, W, 1), "float32") if depth else ("rgb", (H, W, 3), "uint8")
    )
    assert dataset.spec.observations["state"] == ObsKey((3,))
    for i, part in enumerate((slice(0, 5), slice(5, 12))):
        images = dataset.episode(i)["camera"]
        assert images.dtype == key.dtype
        np.testing.assert_array_equal(images, expected[part])
    if depth:
        assert key.unit == ("mm" if layout == "depth_mm" else "m")
        assert key.range is not None
        assert 0.9 * expected.max() <= key.range[1] <= expected.max()
    if dataset.lends_images:
        windows = dataset.windows(n_obs_steps=2, horizon=4, n_action_steps=2)
        seen = windows.gather(np.array([0, 7]))["obs"]["camera"]
        np.testing.assert_array_equal(seen, expected[[[0, 0], [6, 7]]])


@pytest.mark.parametrize("layout", [name for name, (lies, _) in LAYOUTS.items() if lies.dtype == np.uint8])
@pytest.mark.parametrize("budget", [0, 2**30])
def test_bytes_are_converted_while_they_are_read_from_the_disk(
    layout: str, budget: int, tmp_path: Path
) -> None:
    dataset: Any = opened("zarr", tmp_path, columns_of(layout))
    frames = Frames(dataset, "camera", budget)
    assert frames.cached is (budget > 0)
    rows = np.array([[3, 3], [11, 0]])
    np.testing.assert_array_equal(frames.take(rows), LAYOUTS[layout][1][rows])


@pytest.mark.parametrize("layout", ["depth_mm", "depth_m"])
def test_depth_is_read_from_the_disk_as_float32(layout: str, tmp_path: Path) -> None:
    dataset: Any = opened("zarr", tmp_path, columns_of(layout))
    frames = Frames(dataset, "camera", 0)
    assert not frames.cached
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames.take(np.array([4])), LAYOUTS[layout][1][[4]])


@pytest.mark.parametrize("name", ["arrays", "zarr", "npz", "robomimic"])
def test_depth_that_was_not_measured_is_0(name: str, tmp_path: Path) -> None:
    depth = MILLIMETRES / np.float32(1000)
    depth[:, 3, 4], depth[:, 5, 6] = np.nan, np.inf
    dataset = opened(name, tmp_path, {"depth": depth, "state": STATE, "action": ACTION})
    images = dataset.episode(0)["depth"]
    assert images[:, 3, 4].tolist() == images[:, 5, 6].tolist() == [[0.0]] * 5
    np.testing.assert_array_equal(images[:, 7, 8, 0], depth[:5, 7, 8])


def test_one_channel_called_depth_is_depth_whatever_its_numbers() -> None:
    near = ObsKey((H, W), "float32")
    found = recognise("wrist_depth", near, lambda: np.full((2, H, W), 0.5))
    assert isinstance(found, Picture)
    assert found.key == ObsKey((H, W, 1), "float32", "depth", "m", (0.0, 0.5))


@pytest.mark.parametrize("name", ["arrays", *WRITERS])
@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (RNG.normal(size=(N, 20, 24, 3)).astype(np.float32), "where images hold 0 to 1 or 0 to 255"),
        (RNG.integers(0, 60000, (N, 20, 24, 3), np.uint16), "where images hold 0 to 1 or 0 to 255"),
        (-MILLIMETRES.repeat(3, 1).astype(np.float32), "where depth is 0 or more"),
        (
            RNG.normal(size=(N, 512, 6)).astype(np.float32),
            "512 x 6 numbers, which points=[NAME] reads as a cloud of points",
        ),
        (RNG.integers(0, 9, (N, 2, 20, 24, 3), np.uint8), "2 x 20 x 24 x 3 numbers"),
        (RNG.integers(0, 256, (N, 5000), np.uint8), "5000 bytes, perhaps packed images"),
    ],
)
def test_what_is_no_image_is_not_observed_unless_asked_for(
    name: str, column: Column, reason: str, tmp_path: Path
) -> None:
    columns = {"thing": column, "state": STATE, "action": ACTION}
    dataset = opened(name, tmp_path, columns)
    assert list(dataset.spec.observations) == ["state"]
    assert reason in dataset.unused["thing"]
    np.testing.assert_array_equal(dataset.episode(0)["thing"], column[:5])
    if name in WRITERS:
        with open_dataset(next(tmp_path.iterdir()), keys=["thing"]) as chosen:
            assert list(chosen.spec.observations) == ["thing"]


def test_small_matrices_stay_plain_numbers() -> None:
    pose, points = RNG.normal(size=(N, 4, 4)).astype(np.float32), np.abs(RNG.normal(size=(N, 64, 3)))
    dataset = Dataset.from_arrays({"pose": pose, "points": points, "action": ACTION}, ENDS)
    assert {key: obs.kind for key, obs in dataset.spec.observations.items()} == {
        "pose": "lowdim",
        "points": "lowdim",
    }


@pytest.mark.parametrize("name", ["zarr", "npz", "robomimic", "minari"])
def test_frames_of_another_scale_are_refused_by_name(name: str, tmp_path: Path) -> None:
    images = COLOUR / np.float32(255)
    images[10] = COLOUR[10]  # none of the frames by which the layout is recognised
    dataset = opened(name, tmp_path, {"camera": images, "state": STATE, "action": ACTION})
    np.testing.assert_array_equal(dataset.episode(0)["camera"], COLOUR[:5])
    with pytest.raises(
        FlowleapError, match=r"'camera' holds images with numbers from 0 to 255, not 0 to 1; leave"
    ):
        dataset.episode(1)


def test_an_episode_of_another_dtype_is_refused(tmp_path: Path) -> None:
    path = write_npz_folder(tmp_path, columns_of("hwc"))
    images = (COLOUR[5:] / 255).astype(np.float32)
    np.savez(path / "1.npz", camera=images, state=STATE[5:], action=ACTION[5:])
    with open_dataset(path) as dataset, pytest.raises(FlowleapError, match=r"1\.npz: 'camera' holds images"):
        dataset.episode(1)


@pytest.mark.parametrize("to", ["zarr", "robomimic", "lerobot"])
@pytest.mark.parametrize("layout", ["chw", "grey01", "depth_mm", "rgba"])
def test_a_conversion_keeps_what_was_read(to: str, layout: str, tmp_path: Path) -> None:
    from flowleap.datasets import dataset as formats

    pytest.importorskip("pyarrow")
    with open_dataset(write_npz(tmp_path, columns_of(layout))) as source:
        spec = Spec(source.spec.observations, 2, control_hz=10.0)
        out = tmp_path / ("out.hdf5" if to == "robomimic" else "out")
        with formats.format_module(to).Writer(out, spec, source.attrs, extra=source.extra) as writer:
            for i in range(2):
                writer.add(source.episode(i))
    with open_dataset(out) as back:
        assert back.spec.observations["camera"] == spec.observations["camera"]
        np.testing.assert_array_equal(back.episode(1)["camera"], LAYOUTS[layout][1][5:])


# Views


def averaged(images: Column, factor: int) -> Column:
    shape = (*images.shape[:-3], images.shape[-3] // factor, factor, images.shape[-2] // factor, factor, 3)
    return images.reshape(shape).mean((-4, -2))


def test_a_view_averages_colours_and_picks_depth() -> None:
    small = View((H, W), (0, 0, H, W), (H // 4, W // 4))
    seen = small(COLOUR)
    assert seen.dtype == np.uint8
    assert np.abs(seen - averaged(COLOUR, 4)).max() <= 1
    depth = MILLIMETRES[..., None].astype(np.float32)
    np.testing.assert_array_equal(small(depth), depth[:, 2::4, 2::4])
    cut = View((H, W), (2, 3, 8, 10), (8, 10))
    np.testing.assert_array_equal(cut(COLOUR), COLOUR[:, 2:10, 3:13])
    both = View((H, W), (4, 8, 8, 16), (2, 4))(COLOUR)
    assert np.abs(both - averaged(COLOUR[:, 4:12, 8:24], 4)).max() <= 1


@pytest.mark.parametrize(
    ("resize", "crop", "expected"),
    [
        ([60, 80], None, View((480, 640), (0, 0, 480, 640), (60, 80))),
        ([96, 96], "centre", View((480, 640), (0, 80, 480, 480), (96, 96))),
        (None, "centre", View((480, 640), (0, 80, 480, 480), (480, 480))),
        ([90, 160], "centre", View((480, 640), (60, 0, 360, 640), (90, 160))),
        (None, [100, 200], View((480, 640), (190, 220, 100, 200), (100, 200))),
        ([50, 50], [10, 20, 100, 200], View((480, 640), (10, 20, 100, 200), (50, 50))),
    ],
)
def test_options_say_which_view(resize: Any, crop: Any, expected: View) -> None:
    assert choose_view((480, 640), resize, crop) == expected


@pytest.mark.parametrize(
    ("resize", "crop", "message"),
    [
        (120, None, r"resize=120 must be \[height, width\]"),
        ([120, 0], None, "is no 2 sides"),
        (None, [0, 0, 500, 100], r"crop=\[0, 0, 500, 100\] is not inside of images of \[480, 640\] px"),
        (None, [500, 100], "must be|is no"),
        (None, "middle", "must be"),
        ([10**6, 1], None, "is no 2 sides"),
    ],
)
def test_views_that_do_not_fit_are_refused(resize: Any, crop: Any, message: str) -> None:
    with pytest.raises(FlowleapError, match=message):
        choose_view((480, 640), resize, crop)


@pytest.mark.parametrize("layout", ["hwc", "chw", "grey01", "float01", "depth_mm"])
@pytest.mark.parametrize("name", ["arrays", *WRITERS])
def test_cameras_are_read_smaller_from_every_format(name: str, layout: str, tmp_path: Path) -> None:
    dataset = opened(name, tmp_path, columns_of(layout), resize=[5, 6], crop=[20, 24])
    view = View((H, W), (0, 0, H, W), (5, 6))
    key = dataset.spec.observations["camera"]
    assert key.shape[:2] == (5, 6)
    assert key.views == (view,)
    assert key.camera_shape[:2] == (H, W)
    expected = view(LAYOUTS[layout][1])
    np.testing.assert_array_equal(dataset.episode(1)["camera"], expected[5:])
    if dataset.lends_images:
        np.testing.assert_array_equal(dataset.columns()["camera"].take(np.arange(N), axis=0), expected)


def test_each_camera_has_its_own_size_and_wrong_names_are_named(tmp_path: Path) -> None:
    columns = {**columns_of("hwc", "top"), "wrist": COLOUR}
    path = write_zarr(tmp_path, columns)
    with open_dataset(path, resize={"top": [10, 12]}, crop={"w*": [16, 16]}) as dataset:
        assert dataset.spec.observations["top"].shape == (10, 12, 3)
        np.testing.assert_array_equal(dataset.episode(0)["wrist"], COLOUR[:5, 2:18, 4:20])
    with pytest.raises(FlowleapError, match="there is no camera 'tip', only top, wrist; did you mean 'top'"):
        open_dataset(path, resize={"tip": [10, 12]})
    with pytest.raises(FlowleapError, match="no images"):
        open_dataset(write_npz(tmp_path, {"state": STATE, "action": ACTION}), resize=[10, 12])


def test_some_episodes_of_some_cameras_are_read_smaller(tmp_path: Path) -> None:
    path = write_zarr(tmp_path, {**columns_of("chw", "top"), "wrist": COLOUR})
    small = View((H, W), (0, 0, H, W), (5, 6))(COLOUR)
    for dataset in (
        open_dataset(path, keys=["top"], drop=[0], resize=[5, 6]),
        open_dataset(path, keys=["top"], drop=[0]).resize([5, 6]),
    ):
        assert list(dataset.spec.observations) == ["top"]
        np.testing.assert_array_equal(dataset.episode(0)["top"], small[5:])
        seen = dataset.windows().gather(np.array([2]))["obs"]["top"]
        np.testing.assert_array_equal(seen[0], small[[7]])
        on_disk = dataset.columns(cache_bytes=0)["top"]
        np.testing.assert_array_equal(on_disk.take(np.array([3, 1]), axis=0), small[[8, 6]])


def test_images_in_memory_of_dropped_episodes_are_not_looked_at() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 20, 3)) / np.float32(255)
    columns = {"cam": images.copy(), "action": np.zeros((9, 2), np.float32)}
    columns["cam"][4] = np.nan
    source = Dataset.from_arrays(columns, [3, 6, 9])
    with pytest.raises(FlowleapError, match="NaN"):
        source.columns()
    kept = Selected(source, drop=[1]).columns()["cam"]
    np.testing.assert_array_equal(kept, np.rint(255 * images[[0, 1, 2, 6, 7, 8]]).astype(np.uint8))


def test_small_frames_of_a_large_camera_fit_into_the_cache(tmp_path: Path) -> None:
    with open_dataset(write_zarr(tmp_path, columns_of("hwc")), resize=[5, 6]) as dataset:
        frames: Any = dataset.columns(cache_bytes=COLOUR.nbytes // 4)["camera"]
        assert frames.cached
        assert frames.nbytes == N * 5 * 6 * 3


def test_views_are_kept_in_a_spec_and_hostile_ones_are_refused() -> None:
    first, second = (
        View((480, 640), (0, 80, 480, 480), (240, 240)),
        View((240, 240), (0, 0, 240, 240), (60, 60)),
    )
    camera = ObsKey((60, 60, 3), "uint8", "rgb", views=(first, second))
    depth = ObsKey((60, 60, 1), "float32", "depth", "mm", (0.0, 4000.0))
    spec = Spec({"camera": camera, "depth": depth, "state": ObsKey((3,))}, 2)
    assert Spec.from_dict(json.loads(spec.to_json())) == spec
    assert spec.to_dict()["observations"]["state"] == {"shape": [3], "dtype": "float32", "kind": "lowdim"}
    frames = RNG.integers(0, 256, (2, 480, 640, 3), np.uint8)
    np.testing.assert_array_equal(camera.see(frames), second(first(frames)))
    for change, message in (
        ({"views": [{"size": [480, 640], "crop": [0, 0, 9, 9], "resize": [10**9, 1]}]}, "resize"),
        ({"views": [{"size": [480, 640], "crop": [0, 0, 9, 9], "resize": [50, 50]}]}, "do not lead to"),
        ({"views": [{"size": [480, 640]}]}, "crop"),
        ({"views": 3}, "no list of views"),
        ({"views": "abcdefghijk"}, "no list of views"),
        ({"kind": "depth"}, "not those of depth"),
        ({"kind": "lowdim"}, "only images"),
    ):
        data = spec.to_dict()
        data["observations"]["camera"] |= change
        with pytest.raises(FlowleapError, match=message):
            Spec.from_dict(data)
