"""Minari datasets and plain numpy files: what is read, what is refused, and that nothing is unpickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowleap.datasets import dataset as formats
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey

LENGTHS = (4, 1, 7)


# Minari


def box(shape: tuple[int, ...], dtype: str, low: float, high: float) -> dict[str, Any]:
    low_, high_ = np.full(shape, low).tolist(), np.full(shape, high).tolist()
    return {"type": "Box", "dtype": dtype, "shape": list(shape), "low": low_, "high": high_}


def observations(i: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    n = LENGTHS[i] + 1
    return {
        "position": rng.normal(size=(n, 3)),
        "camera": np.broadcast_to(rng.integers(0, 255, (n, 1, 1, 3), np.uint8), (n, 32, 40, 3)),
    }


@pytest.fixture
def minari_folder(tmp_path: Path) -> Path:
    """A dataset as Minari 0.5 stores it, with a dictionary of observations and JPEG images."""
    h5py = pytest.importorskip("h5py", reason="needs flowleap[formats]")
    image = pytest.importorskip("PIL.Image")
    data = tmp_path / "reach-v0" / "data"
    data.mkdir(parents=True)
    spaces = {"position": box((3,), "float64", -1, 1), "camera": box((32, 40, 3), "uint8", 0, 255)}
    metadata = {
        "dataset_id": "mine/reach-v0",
        "total_episodes": 3,
        "observation_space": json.dumps({"type": "Dict", "subspaces": spaces}),
        "env_spec": json.dumps({"id": "Reach-v1", "kwargs": {}}),
    }
    (data / "metadata.json").write_text(json.dumps(metadata))
    with h5py.File(data / "main_data.hdf5", "w") as f:
        for i, n in enumerate(LENGTHS):
            group = f.create_group(f"episode_{i}")
            group.attrs["seed"] = 40 + i
            images = []
            for frame in observations(i)["camera"]:
                name = tmp_path / "frame.jpg"
                image.fromarray(frame).save(name, "JPEG", quality=95)
                images.append(np.frombuffer(name.read_bytes(), np.uint8))
            jpeg = group.create_dataset("observations/camera", (n + 1,), dtype=h5py.vlen_dtype(np.uint8))
            for j, encoded in enumerate(images):
                jpeg[j] = encoded
            group["observations/position"] = observations(i)["position"]
            group["actions"] = np.arange(2.0 * n).reshape(n, 2)
            for name in ("rewards", "terminations", "truncations"):
                group[name] = np.zeros(n, float if name == "rewards" else bool)
            group["infos/note"] = np.zeros((n + 1, 2))
    return data.parent


def test_minari_observations_lose_their_last(minari_folder: Path) -> None:
    for path in (minari_folder, minari_folder / "data", minari_folder / "data" / "main_data.hdf5"):
        assert formats.detect(path) == "minari"
    with formats.open_dataset(minari_folder) as source:
        assert source.spec.observations == {
            "camera": ObsKey((32, 40, 3), "uint8", "rgb"),
            "position": ObsKey((3,), "float64"),
        }
        assert set(source.extra) == {"rewards", "terminations", "truncations", "action"}
        assert source.spec.source["env"] == "Reach-v1"
        assert source.seed(2) == 42
        for i in range(3):
            got = source.episode(i)
            np.testing.assert_array_equal(got["position"], observations(i)["position"][:-1])
            assert np.abs(got["camera"].astype(int) - observations(i)["camera"][:-1]).max() <= 4
    assert load_columns(None, formats.open_dataset(minari_folder)).episode_ends.tolist() == [4, 5, 12]


def test_broken_minari_datasets_are_named(minari_folder: Path) -> None:
    import h5py

    file = minari_folder / "data" / "main_data.hdf5"
    with h5py.File(file, "a") as f:
        del f["episode_1/observations/position"]
        f["episode_1/observations/position"] = np.zeros((1, 3))
    with pytest.raises(FlowleapError, match="reach-v0', episode 1: 'position' has 1 frames for 1 actions"):
        load_columns(None, formats.open_dataset(minari_folder))
    with h5py.File(file, "a") as f:
        del f["episode_2"]
    with pytest.raises(FlowleapError, match=r"has 2 episodes, metadata\.json says 3"):
        load_columns(None, formats.open_dataset(minari_folder))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FlowleapError, match=r"main_data\.hdf5' is no whole HDF5 file"):
        load_columns(None, formats.open_dataset(minari_folder))


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_that_minari_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari", reason="needs minari")
    spaces = pytest.importorskip("gymnasium").spaces
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    space = spaces.Dict(
        position=spaces.Box(-9, 9, (3,), np.float64), camera=spaces.Box(0, 255, (32, 40, 3), np.uint8)
    )
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=i,
            seed=40 + i,
            observations=observations(i),
            actions=np.arange(n) % 2,
            rewards=[0.5] * n,
            terminations=[False] * n,
            truncations=[False] * (n - 1) + [True],
        )
        for i, n in enumerate(LENGTHS)
    ]
    minari.create_dataset_from_buffers(
        "mine/reach-v0", buffers, observation_space=space, action_space=spaces.Discrete(2), eval_env=None
    )
    with formats.open_dataset(tmp_path / "mine" / "reach-v0") as source:
        assert source.n_episodes == 3
        for i, n in enumerate(LENGTHS):
            got = source.episode(i)
            np.testing.assert_array_equal(got["position"], observations(i)["position"][:-1])
            assert np.abs(got["camera"].astype(int) - observations(i)["camera"][:-1]).max() <= 4
            np.testing.assert_array_equal(got["action"][:, 0], np.arange(n) % 2)
            assert got["truncations"].tolist() == [False] * (n - 1) + [True]
            assert source.seed(i) == 40 + i


# numpy


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flat_files(tmp_path: Path, save: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = {"q": rng.normal(size=(12, 2, 3)), "n": rng.integers(0, 9, 12), "rewards": rng.normal(size=12)}
    save(
        tmp_path / "a.npz",
        actions=rng.normal(size=(12, 2)),
        episode_ends=[4, 5, 12],
        start=np.arange(6.0).reshape(3, 2),
        other=np.zeros((5, 2)),
        **arrays,
    )
    loaded = dict(np.load(tmp_path / "a.npz"))
    loaded["start"] = np.repeat(loaded["start"], [4, 1, 7], axis=0)  # one row an episode
    with formats.open_dataset(tmp_path / "a.npz") as source:
        assert source.spec.observations == {"n": ObsKey((), "int64"), "q": ObsKey((2, 3), "float64")}
        assert set(source.extra) == {"rewards", "action", "start"}
        for i in (2, 0, 1):
            rows = slice((0, 4, 5)[i], (4, 5, 12)[i])
            for key, values in source.episode(i).items():
                np.testing.assert_array_equal(values, loaded["actions" if key == "action" else key][rows])


def test_the_adroit_demonstrations(pusht_human: Path) -> None:
    file = pusht_human.parent.parent / "adroit_door_human" / "door_human_25.npz"
    data = load_columns(None, formats.open_dataset(file))
    columns, ends, spec = data.columns(), data.episode_ends, data.spec
    assert (spec.action_dim, list(spec.observations), len(ends)) == (28, ["observations"], 25)
    assert columns["observations"].shape == (6729, 39)


def test_a_folder_of_episodes(tmp_path: Path) -> None:
    for i in (2, 10, 1):
        np.savez(tmp_path / f"episode_{i}.npz", q=np.full((i, 3), i), action=np.zeros((i, 1), np.float32))
    data = load_columns(None, formats.open_dataset(tmp_path))
    columns, ends, _ = data.columns(), data.episode_ends, data.spec
    assert ends.tolist() == [1, 3, 13], "by number, not by letter"
    assert columns["q"][3, 0] == 10

    np.savez(tmp_path / "episode_10.npz", q=np.zeros((3, 2)), action=np.zeros((3, 1), np.float32))
    with pytest.raises(
        FlowleapError, match=r"episode_10\.npz: 'q' has shape \(2,\) a frame, \(3,\) in the episodes"
    ):
        load_columns(None, formats.open_dataset(tmp_path))
    np.savez(tmp_path / "episode_10.npz", action=np.zeros((3, 1), np.float32))
    with pytest.raises(FlowleapError, match=r"episode_10\.npz: 'q' is missing"):
        load_columns(None, formats.open_dataset(tmp_path))
    file = tmp_path / "episode_10.npz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(FlowleapError, match=r"episode_10\.npz' is no whole \.npz file"):
        load_columns(None, formats.open_dataset(tmp_path))


@pytest.mark.parametrize(
    ("ends", "message"),
    [([4, 4], "increase from above 0"), ([0, 12], "increase"), ([4.0, 12.0], "whole numbers")],
)
def test_bad_ends(tmp_path: Path, ends: list[float], message: str) -> None:
    np.savez(tmp_path / "a.npz", q=np.zeros((12, 1)), action=np.zeros((12, 1)), episode_ends=ends)
    with pytest.raises(FlowleapError, match=message):
        load_columns(None, formats.open_dataset(tmp_path / "a.npz"))


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    poison = np.array([Malice(trace)] * 3, dtype=object)
    pickle.loads(pickle.dumps(poison))
    assert trace.exists(), "the payload must work where it is unpickled"
    trace.unlink()
    folder = tmp_path / "episodes"
    folder.mkdir()
    action = np.zeros((3, 1), np.float32)
    np.savez(folder / "0.npz", q=action, action=action)
    np.savez(folder / "1.npz", q=poison, action=action)
    np.savez(tmp_path / "a.npz", q=poison, action=action, episode_ends=[3])
    np.savez(tmp_path / "b.npz", q=action, action=poison, episode_ends=[3])
    with pytest.raises(FlowleapError, match=r"1\.npz: 'q' has dtype object"):
        load_columns(None, formats.open_dataset(folder))
    with pytest.raises(FlowleapError, match=r"no observations.*'q' has dtype object, only numbers"):
        load_columns(None, formats.open_dataset(tmp_path / "a.npz"))
    with pytest.raises(
        FlowleapError, match=r"has no column 'action'.*'action' cannot be read: has dtype object"
    ):
        load_columns(None, formats.open_dataset(tmp_path / "b.npz"))
    assert not trace.exists()
