"""Minari datasets and plain numpy files: what is read, what is refused, and that nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowleap.datasets import dataset as formats
from flowleap.datasets.formats.minari_spaces import leaves
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


FORMATS = ("hdf5", "arrow", "parquet")


def recorded(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    data_format: str,
    space: Any,
    observed: Callable[[int], Any],
    action_space: Any = None,
    acted: Callable[[int], Any] | None = None,
) -> Path:
    """A dataset that minari writes, of LENGTHS steps, with observations and actions for each number of frames."""
    minari = pytest.importorskip("minari", reason="needs minari")
    spaces = pytest.importorskip("gymnasium").spaces
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    acted = acted or (lambda n: np.arange(2.0 * n).reshape(n, 2))
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=i,
            seed=40 + i,
            observations=observed(n + 1),
            actions=acted(n),
            rewards=[0.5] * n,
            terminations=[False] * n,
            truncations=[False] * (n - 1) + [True],
            infos={"note": np.zeros((n + 1, 2))},
        )
        for i, n in enumerate(LENGTHS)
    ]
    minari.create_dataset_from_buffers(
        "mine/reach-v0",
        buffers,
        observation_space=space,
        action_space=action_space or spaces.Box(-99, 99, (2,), np.float64),
        eval_env=None,
        data_format=data_format,
    )
    return folder / "mine" / "reach-v0"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data_format", FORMATS)
def test_a_dataset_that_minari_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str
) -> None:
    """Nested dictionaries and tuples, choices, images and texts, in all storages of minari."""
    spaces = pytest.importorskip("gymnasium").spaces
    parts = {
        "camera": spaces.Box(0, 255, (32, 40, 3), np.uint8),
        "arm": spaces.Dict(q=spaces.Box(-9, 9, (2, 3), np.float64), on=spaces.MultiBinary(4)),
        "pair": spaces.Tuple((spaces.Box(-9, 9, (3,), np.float32), spaces.Discrete(5, start=-2))),
        "grid": spaces.MultiDiscrete([3, 4]),
        "room": spaces.Discrete(4096),
        "words": spaces.Text(9),
    }

    def observed(n: int) -> dict[str, Any]:
        rng = np.random.default_rng(n)
        return {
            "camera": np.broadcast_to(rng.integers(0, 255, (n, 1, 1, 3), np.uint8), (n, 32, 40, 3)),
            "arm": {"q": rng.normal(size=(n, 2, 3)), "on": rng.integers(0, 2, (n, 4), np.int8)},
            "pair": (rng.normal(size=(n, 3)).astype(np.float32), rng.integers(-2, 3, n)),
            "grid": np.stack([rng.integers(0, 3, n), rng.integers(0, 4, n)], axis=1),
            "room": rng.integers(0, 4096, n),
            "words": ["x"] * n,
        }

    path = recorded(tmp_path, monkeypatch, data_format, spaces.Dict(parts), observed)
    assert formats.detect(path) == formats.detect(path / "data") == "minari"
    with formats.open_dataset(path) as source:
        assert source.spec.observations == {
            "arm.on": ObsKey((4,), "int8"),
            "arm.q": ObsKey((2, 3), "float64"),
            "camera": ObsKey((32, 40, 3), "uint8", "rgb"),
            "grid": ObsKey((7,)),
            "pair._index_0": ObsKey((3,)),
            "pair._index_1": ObsKey((5,)),
        }
        assert source.refused["words"] == "is of a Text space, only numbers are read"
        assert source.refused["room"] == "is one of 4096 choices, too many for a one-hot vector"
        for i in (2, 0, 1):
            n = LENGTHS[i]
            got, expected = source.episode(i), observed(n + 1)
            np.testing.assert_array_equal(got["arm.q"], expected["arm"]["q"][:-1])
            np.testing.assert_array_equal(got["arm.on"], expected["arm"]["on"][:-1])
            np.testing.assert_array_equal(got["pair._index_0"], expected["pair"][0][:-1])
            chosen = np.argmax(got["pair._index_1"], axis=1) - 2
            np.testing.assert_array_equal(chosen, expected["pair"][1][:-1])
            np.testing.assert_array_equal(np.argmax(got["grid"][:, :3], axis=1), expected["grid"][:-1, 0])
            np.testing.assert_array_equal(np.argmax(got["grid"][:, 3:], axis=1), expected["grid"][:-1, 1])
            np.testing.assert_array_equal(got["grid"].sum(axis=1), np.full(n, 2))
            assert np.abs(got["camera"].astype(int) - expected["camera"][:-1]).max() <= 4
            np.testing.assert_array_equal(got["action"], np.arange(2.0 * n).reshape(n, 2))
            assert got["truncations"].tolist() == [False] * (n - 1) + [True]
            assert got["rewards"].tolist() == [0.5] * n
            assert source.seed(i) == 40 + i
    assert load_columns(None, formats.open_dataset(path)).episode_ends.tolist() == [4, 5, 12]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data_format", FORMATS)
def test_spaces_of_minaris_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str) -> None:
    """Choices observed as such are a one-hot vector; a tuple of actions is joined."""
    spaces = pytest.importorskip("gymnasium").spaces
    both = spaces.Tuple((spaces.Box(-9, 9, (2,), np.float64), spaces.Box(-9, 9, (1, 2), np.float64)))
    parts = {n: (np.full((n, 2), float(n)), np.arange(2.0 * n).reshape(n, 1, 2)) for n in LENGTHS}
    choice = spaces.Discrete(3)
    path = recorded(
        tmp_path, monkeypatch, data_format, choice, lambda n: np.arange(n) % 3, both, lambda n: parts[n]
    )
    with formats.open_dataset(path) as source:
        assert source.spec.observations == {"observations": ObsKey((3,))}
        np.testing.assert_array_equal(source.episode(2)["observations"], np.eye(3)[np.arange(7) % 3])
        expected = np.concatenate([np.full((7, 2), 7), np.arange(14.0).reshape(7, 2)], axis=1)
        np.testing.assert_array_equal(source.episode(2)["action"], expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nested", [False, True])
def test_choices_as_actions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    spaces = pytest.importorskip("gymnasium").spaces
    space = spaces.Dict(key=spaces.Discrete(2)) if nested else spaces.Discrete(2)

    def acted(n: int) -> Any:
        return {"key": np.arange(n) % 2} if nested else np.arange(n) % 2

    box = spaces.Box(-9, 9, (1,), np.float64)
    path = recorded(tmp_path, monkeypatch, "hdf5", box, lambda n: np.zeros((n, 1)), space, acted)
    at = " at key" if nested else ""
    with pytest.raises(FlowleapError, match=f"has actions of a Discrete space{at}, and a policy draws real"):
        formats.open_dataset(path)
    if not nested:  # what the message advises
        page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
        (lines,) = re.findall(r"### Choices as actions.*?```python\n(.*?)```", page, re.S)
        monkeypatch.chdir(tmp_path)
        exec(lines.replace("mine/maze-v0", "mine/reach-v0"), {})
        with formats.open_dataset(tmp_path / "data" / "maze.zarr") as source:
            np.testing.assert_array_equal(source.episode(2)["action"], np.eye(2)[np.arange(7) % 2])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_broken_tables_of_minari_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str
) -> None:
    spaces = pytest.importorskip("gymnasium").spaces
    box = spaces.Box(-9, 9, (3,), np.float64)
    path = recorded(tmp_path, monkeypatch, data_format, box, lambda n: np.ones((n, 3)))
    (file,) = (path / "data" / "1").glob(f"*.{data_format}")
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        file.unlink()  # the old one may be mapped into memory
        file.write_bytes(damaged)
        with pytest.raises(FlowleapError, match="reach-v0/data/1' cannot be read"):
            formats.open_dataset(path).episode(1)
    file.unlink()
    with pytest.raises(FlowleapError, match=r"reach-v0/data/1' holds no \.arrow or \.parquet file"):
        formats.open_dataset(path).episode(1)
    (path / "data" / "1" / "metadata.json").unlink()
    (path / "data" / "1").rmdir()
    with pytest.raises(FlowleapError, match=r"has 2 episodes, metadata\.json says 3"):
        formats.open_dataset(path)


def test_one_hot_vectors_refuse_what_is_no_choice() -> None:
    (leaf,) = leaves(json.dumps({"type": "Discrete", "n": 3, "start": 1}))
    np.testing.assert_array_equal(leaf.one_hot(np.array([3, 1])), [[0, 0, 1], [1, 0, 0]])
    for values in (np.array([0]), np.array([4]), np.array([1.5]), np.ones((2, 2), np.int64)):
        with pytest.raises(FlowleapError, match=r"(outside of its choices 1 to 3|its space is Discrete)"):
            leaf.one_hot(values)


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
    [([4, 4], "increase from above 0"), ([0, 12], "increase"), ([4.5, 12.0], "whole numbers")],
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
