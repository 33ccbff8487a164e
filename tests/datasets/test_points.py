"""Clouds of points in datasets: declared, stored, read by every way, refused where they are none."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import zarr

from flowleap.datasets.convert import Plan, convert
from flowleap.datasets.dataset import Dataset, open_dataset
from flowleap.datasets.formats.zarr_store import EpisodeStore, EpisodeWriter
from flowleap.datasets.frames import Frames
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec, SpecMismatch
from flowleap.scripts.cli import main as cli

N, POINTS = 12, 400
ENDS = np.array([5, 12])
RNG = np.random.default_rng(0)
COLUMNS = {
    "scan": RNG.normal(size=(N, POINTS, 3)),
    "state": RNG.normal(size=(N, 2)).astype(np.float32),
    "action": RNG.normal(size=(N, 2)).astype(np.float32),
}
CLOUD = ObsKey((POINTS, 3), "float64", "points")
SPEC = Spec({"scan": CLOUD, "state": ObsKey((2,))}, 2)


def parts(columns: dict[str, np.ndarray] = COLUMNS) -> list[dict[str, np.ndarray]]:
    return [{key: x[part] for key, x in columns.items()} for part in (slice(0, 5), slice(5, 12))]


def write_npz(path: Path) -> Path:
    np.savez(path / "a.npz", episode_ends=ENDS, **COLUMNS)  # type: ignore[arg-type]
    return path / "a.npz"


def write_robomimic(path: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "a.hdf5", "w") as file:
        for i, episode in enumerate(parts()):
            for key, x in episode.items():
                file[f"data/demo_{i}/{'actions' if key == 'action' else f'obs/{key}'}"] = x
    return path / "a.hdf5"


def write_zarr(path: Path) -> Path:
    """A replay buffer of others, without a Spec."""
    group = zarr.open_group(path / "a.zarr", mode="w", zarr_format=2)
    for key, x in COLUMNS.items():
        group.create_array(f"data/{key}", data=x, chunks=(4, *x.shape[1:]))
    group.create_array("meta/episode_ends", data=ENDS)
    return path / "a.zarr"


FOREIGN = [write_npz, write_robomimic, write_zarr]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "own.zarr"
    with EpisodeWriter(path, SPEC) as writer:
        for episode in parts():
            writer.add(episode)
    return path


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((POINTS, 4), "float32", r"\(number, 3\) or \(number, 6\)"),
        ((POINTS * 3,), "float32", r"\(number, 3\) or \(number, 6\)"),
        ((POINTS, 3), "uint8", "must be floats, not uint8"),
    ],
)
def test_a_spec_refuses_what_is_no_cloud(shape: tuple[int, ...], dtype: str, message: str) -> None:
    with pytest.raises(FlowleapError, match=f"'scan'.*{message}"):
        Spec({"scan": ObsKey(shape, dtype, "points")}, 2)


def test_a_spec_survives_json_and_tells_points_from_numbers() -> None:
    assert Spec.from_dict(SPEC.to_dict()) == SPEC
    assert (CLOUD.image, CLOUD.dense, CLOUD.statistics_shape) == (False, True, (3,))
    numbers = Spec({**SPEC.observations, "scan": ObsKey((POINTS, 3), "float64")}, 2)
    with pytest.raises(SpecMismatch, match=r"'scan'.*\(points\).*\(lowdim\)"):
        SPEC.require_match(numbers, "checkpoint", "dataset")


@pytest.mark.parametrize("write", FOREIGN)
def test_a_cloud_of_others_is_read_as_points_where_one_says_so(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path)
    with open_dataset(path) as dataset:
        assert list(dataset.spec.observations) == ["state"]
        assert "points=[NAME] reads as a cloud" in dataset.unused["scan"]
    with open_dataset(path, points=["cloud"], rename={"cloud": "scan"}, episodes=[1]) as dataset:
        assert dataset.spec.observations["cloud"] == CLOUD
        np.testing.assert_array_equal(dataset.episode(0)["cloud"], COLUMNS["scan"][5:])
        lends = dataset.lends_images
        assert ("cloud" in dataset.trainable.observations) is lends
        if lends:
            windows = dataset.windows(n_obs_steps=2)
            assert isinstance(windows.columns["cloud"], Frames)
            np.testing.assert_array_equal(
                windows.gather(np.array([0, 3]))["obs"]["cloud"],
                COLUMNS["scan"].astype(np.float32)[5:][[[0, 0], [2, 3]]],
            )
        else:
            with pytest.raises(FlowleapError, match=r"without \['cloud'\].*convert"):
                load_columns(None, dataset, images=True)


def test_nothing_but_a_cloud_is_enough(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", cloud=COLUMNS["scan"], action=COLUMNS["action"], episode_ends=ENDS)
    with pytest.raises(FlowleapError, match="nothing to observe"):
        open_dataset(tmp_path / "a.npz")
    with open_dataset(tmp_path / "a.npz", points=["cloud"]) as dataset:
        assert list(dataset.spec.observations) == ["cloud"]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (["scam"], "'scam'.*did you mean 'scan'"),
        (["state"], r"'state'.*\(number, 3\)"),
        (["action"], "'action'.*the actions"),
        ([3], "names no column"),
    ],
)
def test_wrong_names_are_named(points: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(FlowleapError, match=f"(?s)points.*{message}"):
        open_dataset(write_npz(tmp_path), points=points)


def test_a_store_keeps_few_clouds_in_a_chunk_and_reads_them_by_every_way(store: Path) -> None:
    with open_dataset(store) as dataset:
        assert dataset.spec.observations == SPEC.observations
        assert isinstance(dataset, EpisodeStore)
        assert dataset.array("scan").chunks == (4, POINTS, 3)
        index = np.array([0, 6, 11])
        memory, disk = (dataset.windows(2, 4, 2, cache_bytes=size) for size in (2**30, 0))
        assert "in memory" in memory.describe_dense()["scan"]
        assert "on disk" in disk.describe_dense()["scan"]
        one, two = (windows.gather(index)["obs"]["scan"] for windows in (memory, disk))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, COLUMNS["scan"].astype(np.float32)[[[0, 0], [5, 6], [10, 11]]])
        latest = dataset.windows(2, 4, 2, image_frames=1).gather(index)["obs"]["scan"]
        np.testing.assert_array_equal(latest, one[:, 1:])


@pytest.mark.parametrize("to", ["zarr", "robomimic", "lerobot"])
def test_a_conversion_keeps_what_points_are(to: str, store: Path, tmp_path: Path) -> None:
    pytest.importorskip({"zarr": "zarr", "robomimic": "h5py", "lerobot": "pyarrow"}[to])
    from flowleap.datasets.dataset import format_module

    path = tmp_path / {"zarr": "b.zarr", "robomimic": "b.hdf5", "lerobot": "b"}[to]
    with open_dataset(store) as source:
        plan = Plan(source.keys, dict, Spec(SPEC.observations, 2, control_hz=10.0), {})
        with format_module(to).Writer(path, plan.spec) as writer:
            convert(source, plan, writer)
    with open_dataset(path) as dataset:
        assert dataset.spec.observations["scan"] == CLOUD
        np.testing.assert_array_equal(dataset.episode(1)["scan"], COLUMNS["scan"][5:])


def test_numbers_that_are_not_finite_are_named(store: Path, tmp_path: Path) -> None:
    broken = COLUMNS["scan"].copy()
    broken[7, 3, 1] = np.nan
    with EpisodeWriter(tmp_path / "own.zarr", SPEC) as writer:
        first, second = parts({**COLUMNS, "scan": broken})
        writer.add(first)
        with pytest.raises(FlowleapError, match="episode 1: 'scan' is not finite at frame 2"):
            writer.add(second)
    path = write_zarr(tmp_path)
    zarr.open_group(path)["data/scan"][:] = broken  # type: ignore[index]
    with open_dataset(path, points=["scan"]) as dataset:
        with pytest.raises(FlowleapError, match=r"episode 1: 'scan' is not finite at frame 2.*drop="):
            dataset.windows(2, 4, 2)
        windows = dataset.windows(2, 4, 2, cache_bytes=0)
        windows.gather(np.array([0, 5]))
        with pytest.raises(FlowleapError, match="episode 1: 'scan' is not finite at frame 2"):
            windows.gather(np.array([8]))
    with open_dataset(path, points=["scan"], drop=[1]) as dataset:
        assert len(dataset.windows(2, 4, 2)) == 5


def test_arrays_in_memory_need_their_spec_and_their_shape() -> None:
    whole = Dataset.from_arrays(COLUMNS, ENDS, SPEC)
    assert whole.windows(2, 4, 2).gather(np.array([1]))["obs"]["scan"].dtype == np.float32
    fewer = {**COLUMNS, "scan": COLUMNS["scan"][:, 1:]}
    with pytest.raises(SpecMismatch, match=r"'scan' has shape \(399, 3\).*\(400, 3\)"):
        Dataset.from_arrays(fewer, ENDS, SPEC).windows()
    whole_numbers = {**COLUMNS, "scan": COLUMNS["scan"].astype(np.int64)}
    with pytest.raises(SpecMismatch, match="'scan' is points and must be floats, not int64"):
        Dataset.from_arrays(whole_numbers, ENDS, SPEC).windows()


def test_inspect_shows_a_row_for_the_axes_and_names_what_is_broken(tmp_path: Path) -> None:
    path = write_zarr(tmp_path)
    scan = COLUMNS["scan"].copy()
    scan[5:] = scan[5]
    scan[2, 0, 0] = np.inf
    zarr.open_group(path)["data/scan"][:] = scan  # type: ignore[index]
    out = io.StringIO()
    with redirect_stdout(out):
        words = ["inspect", f"dataset={path}", "points=[scan]", f"html={tmp_path}/page.html"]
        assert cli.main(words) == 0
    text = " ".join(out.getvalue().split())
    assert "scan [400, 3] float64" in text
    assert "'scan' holds NaN or infinite numbers (in 1 episodes: episode 0)" in text
    assert "'scan' shows one and the same cloud of points in 1 of 2 episodes: episode 1" in text
    assert "mean of scan in episode" in (tmp_path / "page.html").read_text()
