"""What is not an observation never becomes one, in any format; keys, episodes and drop choose the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flowleap.datasets import roles
from flowleap.datasets.dataset import Dataset, open_dataset
from flowleap.datasets.selection import chosen_episodes
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.scripts.cli import main as cli

h5py = pytest.importorskip("h5py", reason="needs flowleap[formats]")

BESIDE = {
    "timestamp": "a time", "camera0_timestamps": "a time", "time": "a time", "t": "a time", "obs.sim_time": "a time",
    "index": "an index", "frame_index": "an index", "episode_idx": "an index", "task_id": "an index",
    "step": "a count", "timestep": "a count", "episode": "a count",
    "reward": "a reward", "next.reward": "a reward", "rewards_total": "a reward", "returns": "a reward",
    "done": "the end of an episode", "next.done": "the end of an episode", "is_first": "the end of an episode",
    "terminals": "the end of an episode", "isTerminal": "the end of an episode", "success": "the end of an episode",
    "observation_is_pad": "the end of an episode",
    "stage": "a stage or a label", "obs/subtask": "a stage or a label",
    "actions": "an action", "obs/actions": "an action", "actions_abs": "an action", "action_dict.pos": "an action",
    "next_state": "one frame ahead",
    "init_qpos": "an initial or final state", "initial_state": "an initial or final state",
    "robot0_demo_start_pose": "an initial or final state",
}  # fmt: skip
OBSERVED = (
    "state,qpos,robot0_eef_pos,robot0_eef_quat,object,gripper_width,goal,desired_goal,prev_action,last_actions,keypoint,"
    "observation.state,joints,image,top,velocity,tactile,identity,stepper_angle,timely,reactions"
)


def test_names() -> None:
    assert {name: roles.no_observation(name) for name in BESIDE} == BESIDE
    assert {name: roles.no_observation(name) for name in OBSERVED.split(",")} == dict.fromkeys(
        OBSERVED.split(",")
    )


COLUMNS = {"joints": 3, "width": 1, "timestamp": 1, "reward": 1, "frame_index": 1, "stage": 1}
E, T = 4, 12
EPISODE = np.repeat(np.arange(E), T)


def columns() -> dict[str, np.ndarray]:
    """[N, size] of every column; `joints` holds the number of the episode."""
    rng = np.random.default_rng(0)
    found = {key: rng.normal(size=(E * T, size)).astype(np.float32) for key, size in COLUMNS.items()}
    found["joints"][:, 0] = EPISODE
    found["frame_index"][:, 0], found["timestamp"][:, 0] = np.arange(E * T) % T, np.arange(E * T) / 10
    found["action"] = rng.normal(size=(E * T, 2)).astype(np.float32)
    return found


def write(folder: Path, name: str, data: dict[str, np.ndarray] | None = None) -> Path:
    """The same recording in a format."""
    data, ends = data or columns(), np.arange(1, E + 1) * T
    path = folder / {"zarr": "d.zarr", "npz": "d.npz", "robomimic": "d.hdf5"}.get(name, "d")
    if name == "zarr":
        group = zarr.open_group(path, mode="w", zarr_format=2)
        for key, x in {f"data/{k}": x for k, x in data.items()}.items():
            group.create_array(key, shape=x.shape, dtype=x.dtype, chunks=x.shape)[:] = x
        group.create_array("meta/episode_ends", shape=(E,), dtype=np.int64, chunks=(E,))[:] = ends
    elif name == "npz":
        np.savez(path, **data, episode_ends=ends)
    elif name == "npz folder":
        path.mkdir()
        for e in range(E):
            np.savez(path / f"{e}.npz", **{key: x[e == EPISODE] for key, x in data.items()})
    elif name == "robomimic":
        with h5py.File(path, "w") as file:
            for e in range(E):
                demo = file.create_group(f"data/demo_{e}")
                demo["actions"] = data["action"][e == EPISODE]
                for key in COLUMNS:
                    demo[f"obs/{key}"] = data[key][e == EPISODE]
            file.create_dataset("mask/train", data=np.array(["demo_3", "demo_1"], dtype=h5py.string_dtype()))
    elif name == "lerobot":
        write_lerobot(path, data)
    return path


def write_lerobot(path: Path, data: dict[str, np.ndarray]) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (path / "meta").mkdir(parents=True)
    (path / "data" / "chunk-000").mkdir(parents=True)
    features: dict[str, Any] = {f"observation.{key}": size for key, size in COLUMNS.items()} | {"action": 2}
    for e in range(E):
        rows = {
            name: pa.array(
                list(data[name.removeprefix("observation.")][e == EPISODE]), pa.list_(pa.float32())
            )
            for name in features
        }
        plain = {"episode_index": np.full(T, e), "frame_index": np.arange(T), "index": e * T + np.arange(T)}
        rows |= {
            "timestamp": np.arange(T, dtype=np.float32) / 10,
            "task_index": np.zeros(T, np.int64),
        } | plain
        parquet.write_table(pa.table(rows), path / "data" / "chunk-000" / f"episode_{e:06d}.parquet")
    info = {
        "codebase_version": "v2.1", "total_episodes": E, "total_frames": E * T, "total_tasks": 1, "chunks_size": 1000,
        "fps": 10, "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "features": {name: {"dtype": "float32", "shape": [size], "names": None} for name, size in features.items()}
        | {k: {"dtype": "int64", "shape": [1]} for k in ("episode_index", "frame_index", "index", "task_index")}
        | {"timestamp": {"dtype": "float32", "shape": [1], "names": None}},
    }  # fmt: skip
    (path / "meta" / "info.json").write_text(json.dumps(info))
    lines = [json.dumps({"episode_index": e, "tasks": ["t"], "length": T}) + "\n" for e in range(E)]
    (path / "meta" / "episodes.jsonl").write_text("".join(lines))
    (path / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "t"}\n')


FORMATS = ["zarr", "npz", "npz folder", "robomimic", "lerobot"]


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_observes_what_is_none(tmp_path: Path, name: str) -> None:
    with open_dataset(write(tmp_path, name)) as dataset:
        assert set(dataset.spec.observations) == {"joints", "width"}
        reasons = {
            "timestamp": "a time",
            "reward": "a reward",
            "frame_index": "an index",
            "stage": "a stage or a label",
        }
        assert dataset.unused == dataset.unused | reasons
        np.testing.assert_array_equal(dataset.columns()["joints"], columns()["joints"])
        np.testing.assert_array_equal(
            dataset.episode(2, ["reward"])["reward"], columns()["reward"][EPISODE == 2]
        )


@pytest.mark.parametrize("name", FORMATS)
def test_keys_and_episodes_choose(tmp_path: Path, name: str) -> None:
    path, data = write(tmp_path, name), columns()
    with open_dataset(path, keys=["j*", "stage"], episodes=[3, 1, 0], drop=[0]) as dataset:
        assert list(dataset.spec.observations) == ["joints", "stage"]
        assert [dataset.label(i) for i in range(dataset.n_episodes)][1].endswith(("1", "1.npz"))
        read = dataset.columns()
        for key in ("joints", "stage", "action"):
            expected = np.concatenate([data[key][EPISODE == 3], data[key][EPISODE == 1]])
            np.testing.assert_array_equal(read[key], expected)
        np.testing.assert_array_equal(dataset.episode_ends, [T, 2 * T])
        windows = dataset.windows(2, 4, 2)
        assert windows.n_frames == 2 * T
    with open_dataset(path, keys=["-width"]) as dataset:
        assert list(dataset.spec.observations) == ["joints"]
        assert dataset.unused["width"] == "left out by keys"
    with pytest.raises(FlowleapError, match=r"no column 'jonts' to observe, only .*; did you mean 'joints'"):
        open_dataset(path, keys=["jonts"])
    with pytest.raises(FlowleapError, match="leaves nothing"):
        open_dataset(path, keys=["-joints", "-width"])
    with pytest.raises(FlowleapError, match="episodes 0 to 3, not 4"):
        open_dataset(path, drop=[4])
    with pytest.raises(FlowleapError, match="leave no episode"):
        open_dataset(path, episodes=2, drop=":2")


def test_arrays_in_memory_obey_the_same_rule() -> None:
    data, ends = columns(), np.arange(1, E + 1) * T
    assert set(Dataset.from_arrays(data, ends).spec.observations) == {"joints", "width"}
    spec = Spec({"reward": ObsKey((1,))}, action_dim=2)  # said by name
    assert set(Dataset.from_arrays(data, ends, spec).spec.observations) == {"reward"}


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (2, [0, 1]),
        (99, list(range(6))),
        ("1:3", [1, 2]),
        ("-2:", [4, 5]),
        ("0,2,4:6", [0, 2, 4, 5]),
        ([5, "1:2", 5], [5, 1]),
    ],
)
def test_ways_to_name_episodes(which: Any, expected: list[int]) -> None:
    assert chosen_episodes(which, 6, "episodes", "d") == expected


@pytest.mark.parametrize("which", [True, "a", "1:2:3:4", 1.5, [1.5], {"a": 1}, [-1], "7"])
def test_what_names_no_episode(which: Any) -> None:
    with pytest.raises(FlowleapError, match="episodes"):
        chosen_episodes(which, 6, "episodes", "d")


@pytest.mark.parametrize("name", FORMATS)
def test_train_inspect_and_convert_say_and_choose(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, small = (
        write(tmp_path, name),
        ["trainer.steps=2", "trainer.progress=false", "backbone.width=8", "trainer.batch_size=8"],
    )
    assert cli.main(["train", f"dataset={path}", f"run_dir={tmp_path / 'run'}", *small]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert "not observed:" in said
    assert "reward (a reward)" in said
    assert "obs joints[3], width[1] |" in said
    assert cli.main(["inspect", f"dataset={path}"]) == 0
    assert "reward (a reward)" in capsys.readouterr().out
    out = tmp_path / "out.zarr"
    assert cli.main(["convert", f"source={path}", f"out={out}", "keys=[joints,reward]", "drop=[1]"]) == 0
    with open_dataset(out) as dataset:
        assert set(dataset.spec.observations) == {"joints", "reward"}  # asked for by name
        assert dataset.columns()["joints"][::T, 0].tolist() == [0, 2, 3]


def test_filters_outlive_a_conversion_and_a_selection(tmp_path: Path) -> None:
    path, out = write(tmp_path, "robomimic"), tmp_path / "out.zarr"
    with open_dataset(path, filter="train") as dataset:
        assert [dataset.label(i) for i in range(2)] == ["demo_1", "demo_3"]
    assert cli.main(["convert", f"source={path}", f"out={out}", "drop=[0]"]) == 0
    with open_dataset(out, filter="train") as dataset:
        assert dataset.columns()["joints"][::T, 0].tolist() == [1, 3]
    with pytest.raises(FlowleapError, match="no filter 'trian', only train; did you mean 'train'"):
        open_dataset(out, filter="trian")


def test_a_nan_in_a_dropped_episode_does_not_matter(tmp_path: Path) -> None:
    for name in FORMATS:
        folder = tmp_path / name
        folder.mkdir()
        data = columns()
        data["action"][T + 3, 1] = np.nan
        path = write(folder, name, data)
        with open_dataset(path) as dataset, pytest.raises(FlowleapError, match=r"nan|not finite"):
            dataset.columns()
        with open_dataset(path, drop=[1]) as dataset:
            assert np.isfinite(dataset.columns()["action"]).all()
