"""robomimic files: what is read off them, what is wrong with broken ones, and what robomimic says of ours."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowleap.datasets import dataset as formats
from flowleap.datasets.columns import Episode
from flowleap.datasets.formats.robomimic import action_convention
from flowleap.datasets.windows import Windows
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey
from flowleap.scripts.cli import main as cli

h5py = pytest.importorskip("h5py", reason="needs flowleap[formats]")

CONTROLLER = {"type": "OSC_POSE", "control_delta": False}
ENV_ARGS = {
    "env_name": "Lift",
    "type": 1,
    "env_kwargs": {"control_freq": 20, "controller_configs": CONTROLLER, "robots": ["Panda"]},
}
LENGTHS = (5, 1, 12, 3, 2, 7, 4, 6, 8, 9, 10)  # eleven, so that demo_10 comes after demo_9


def demonstration(number: int) -> Episode:
    rng = np.random.default_rng(number)
    n = LENGTHS[number]
    return {
        "obs/robot0_eef_pos": rng.normal(size=(n, 3)),
        "obs/object": rng.normal(size=(n, 10)),
        "obs/agentview_image": rng.integers(0, 256, (n, 20, 20, 3), np.uint8),
        "next_obs/robot0_eef_pos": rng.normal(size=(n, 3)),
        "actions": rng.uniform(-1, 1, (n, 7)),
        "actions_abs": rng.uniform(-1, 1, (n, 7)),
        "rewards": rng.normal(size=n),
        "dones": np.zeros(n, np.int64),
        "states": rng.normal(size=(n, 32)),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file as robomimic's own scripts write it."""
    path = tmp_path / "low_dim.hdf5"
    with h5py.File(path, "w") as f:
        data = f.create_group("data")
        data.attrs["env_args"] = json.dumps(ENV_ARGS, indent=4)
        data.attrs["total"] = sum(LENGTHS)
        for i, n in enumerate(LENGTHS):
            group = data.create_group(f"demo_{i}")
            group.attrs["num_samples"] = n
            group.attrs["model_file"] = "<mujoco/>"
            for name, values in demonstration(i).items():
                group.create_dataset(name, data=values)
        f["mask/train"] = np.array([f"demo_{i}" for i in (10, 2, 0)], dtype="S")
        f["mask/valid"] = np.array(["demo_1"], dtype="S")
    return path


def test_what_a_file_says(file: Path) -> None:
    assert formats.detect(file) == "robomimic"
    with formats.open_dataset(file) as source:
        assert source.n_episodes == 11
        assert source.spec.observations == {
            "agentview_image": ObsKey((20, 20, 3), "uint8", "rgb"),
            "object": ObsKey((10,), "float64"),
            "robot0_eef_pos": ObsKey((3,), "float64"),
        }
        assert (source.spec.action_dim, source.spec.control_hz) == (7, 20.0)
        assert source.spec.action_convention == "absolute"
        assert source.spec.source["env_args"] == ENV_ARGS
        assert set(source.extra) == {"action", "actions_abs", "dones", "rewards", "states"}
        assert source.attrs == {"masks": {"train": [0, 2, 10], "valid": [1]}}
        for i in (0, 9, 10):
            expected = demonstration(i)
            got = source.episode(i)
            np.testing.assert_array_equal(got["robot0_eef_pos"], expected["obs/robot0_eef_pos"])
            np.testing.assert_array_equal(got["action"], expected["actions"])
    with formats.open_dataset(file, filter="train") as source:
        assert [source.label(i) for i in range(source.n_episodes)] == ["demo_0", "demo_2", "demo_10"]
    with formats.open_dataset(file, action="actions_abs") as source:
        np.testing.assert_array_equal(source.episode(2)["action"], demonstration(2)["actions_abs"])
    with pytest.raises(
        FlowleapError, match=r"no filter 'trian', only \['train', 'valid'\]; did you mean 'train'"
    ):
        formats.open_dataset(file, filter="trian")


def test_convention_of_the_actions() -> None:
    def said(**controller: Any) -> str:
        return action_convention({"env_kwargs": {"controller_configs": controller}})

    assert said(type="OSC_POSE") == said(control_delta=True) == "delta"
    assert said(control_delta=False) == "absolute"
    assert said(body_parts={"right": {"input_type": "delta"}, "base": {"type": "JOINT"}}) == "delta"
    assert said(body_parts={"right": {"input_type": "absolute"}}) == "absolute"
    assert action_convention({}) == action_convention({"env_kwargs": None}) == "absolute"


def test_back_and_forth_keeps_environment_and_filters(file: Path, tmp_path: Path) -> None:
    assert cli.main(["convert", f"source={file}", f"out={tmp_path}/a.zarr"]) == 0
    assert cli.main(["convert", f"source={tmp_path}/a.zarr", f"out={tmp_path}/b.hdf5"]) == 0
    with h5py.File(tmp_path / "b.hdf5") as f, h5py.File(file) as original:
        assert json.loads(f["data"].attrs["env_args"]) == ENV_ARGS
        assert f["data"].attrs["total"] == sum(LENGTHS)
        assert sorted(f["mask/train"][()]) == sorted(original["mask/train"][()])
        for i in range(len(LENGTHS)):
            assert f[f"data/demo_{i}"].attrs["num_samples"] == LENGTHS[i]
            for name, values in demonstration(i).items():
                if not name.startswith("next_obs"):
                    np.testing.assert_array_equal(f[f"data/demo_{i}/{name}"][()], values)


def test_rotations_become_six_dimensional_and_come_back(file: Path, tmp_path: Path) -> None:
    words = ["keys=[object]", "filter=train"]
    assert cli.main(["convert", f"source={file}", f"out={tmp_path}/a.zarr", "rotation=6d", *words]) == 0
    assert (
        cli.main(["convert", f"source={tmp_path}/a.zarr", f"out={tmp_path}/b.hdf5", "rotation=axis_angle"])
        == 0
    )
    data = load_columns(None, formats.open_dataset(tmp_path / "a.zarr"))
    columns, _, spec = data.columns(), data.episode_ends, data.spec
    assert (spec.action_dim, spec.source["rotation"]) == (10, "6d")
    np.testing.assert_allclose(np.linalg.norm(columns["action"][:, 3:6], axis=1), 1, rtol=1e-12)
    data = load_columns(None, formats.open_dataset(tmp_path / "b.hdf5"))
    back, _, spec = data.columns(), data.episode_ends, data.spec
    original = np.concatenate([demonstration(i)["actions"] for i in (0, 2, 10)])
    np.testing.assert_allclose(back["action"], original, atol=1e-13)
    assert spec.action_dim == 7


def remove_key(f: Any) -> None:
    del f["data/demo_3/obs/object"]


def other_shape(f: Any) -> None:
    remove_key(f)
    f["data/demo_3/obs/object"] = np.zeros((3, 9))


def other_length(f: Any) -> None:
    remove_key(f)
    f["data/demo_3/obs/object"] = np.zeros((2, 10))


def wrong_samples(f: Any) -> None:
    f["data/demo_3"].attrs["num_samples"] = 4


def text(f: Any) -> None:
    remove_key(f)
    f["data/demo_3/obs/object"] = ["a", "b", "c"]


def group(f: Any) -> None:
    remove_key(f)
    f.create_group("data/demo_3/obs/object")


def not_finite(f: Any) -> None:
    f["data/demo_3/obs/object"][1] = np.nan


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_key, "is missing"),
        (other_shape, r"has shape \(9,\) a frame, \(10,\) in the episodes before"),
        (other_length, "(has 2 frames|has 3 frames, 'object' has 2)"),
        (wrong_samples, "has 3 frames, but num_samples says 4"),
        (text, "has dtype object"),
        (group, "is missing"),
        (not_finite, "is not finite at frame 1"),
    ],
)
def test_damage_is_named(file: Path, tmp_path: Path, damage: Callable[[Any], None], message: str) -> None:
    with h5py.File(file, "a") as f:
        damage(f)
    key = "(object|robot0_eef_pos)"
    with pytest.raises(FlowleapError, match=rf"low_dim\.hdf5', demo_3: '{key}' {message}"):
        load_columns(None, formats.open_dataset(file))


def test_damaged_bytes_are_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(file, "a") as f:
        del f["data/demo_3/obs/object"]
        f["data/demo_3"].create_dataset("obs/object", data=np.zeros((3, 10)), chunks=(3, 10), fletcher32=True)
        place = f["data/demo_3/obs/object"].id.get_chunk_info(0).byte_offset
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1
    file.write_bytes(raw)
    assert cli.main(["convert", f"source={file}", "out=never.zarr"]) == 1
    assert "low_dim.hdf5', demo_3: 'object' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 5, 2000, -100])
def test_truncated_files_are_named(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(FlowleapError, match=r"low_dim\.hdf5' is no whole HDF5 file"):
        load_columns(None, formats.open_dataset(file))


def test_other_hdf5_files_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["x"] = np.zeros(3)
    with pytest.raises(FlowleapError, match=r"has no group 'data', only \['x'\]"):
        formats.open_dataset(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as f:
        f["data/demo_0/actions"] = np.zeros((3, 2))
    with pytest.raises(FlowleapError, match=r"demo_0 has no observations in 'obs', only \['actions'\]"):
        formats.open_dataset(tmp_path / "b.h5")


def test_files_without_observations_say_which_scripts_of_robomimic_make_them(file: Path) -> None:
    """Robosuite's recorder leaves states and its own attributes; robomimic's raw files have `env_args`."""
    with h5py.File(file, "a") as f:
        for demo in f["data"].values():
            del demo["obs"]
    scripts = (
        r"with robomimic, `python -m robomimic\.scripts\.dataset_states_to_obs --dataset .* --output_name"
    )
    with pytest.raises(FlowleapError, match=scripts):
        formats.open_dataset(file)
    with h5py.File(file, "a") as f:
        del f["data"].attrs["env_args"]
    with pytest.raises(
        FlowleapError, match=r"`python -m robomimic\.scripts\.conversion\.convert_robosuite --dat"
    ):
        formats.open_dataset(file)
    for module in ("conversion.convert_robosuite", "dataset_states_to_obs"):
        pytest.importorskip("robomimic", reason="needs robomimic")
        assert importlib.util.find_spec(f"robomimic.scripts.{module}") is not None


def test_remedies_for_filters_and_counts_work(file: Path) -> None:
    with h5py.File(file, "a") as f:
        f["mask/gone"] = np.array(["demo_2", "demo_77"], dtype="S")
        f["mask/empty"] = np.array([], dtype="S1")
        f["data/demo_3"].attrs["num_samples"] = 4
    for name, problem in (
        ("gone", r"names \['demo_77'\], which data/ does not have"),
        ("empty", "names no demo"),
    ):
        with pytest.raises(
            FlowleapError, match=rf"mask/{name} {problem}.*episodes='10:20' chooses by number"
        ):
            formats.open_dataset(file, filter=name)
    with formats.open_dataset(file, episodes="10:20") as source:
        assert [source.label(i) for i in range(source.n_episodes)] == ["demo_10"]
    with (
        formats.open_dataset(file) as source,
        pytest.raises(FlowleapError, match="num_samples says 4") as error,
    ):
        source.episode(3)
    with formats.open_dataset(file, drop=[3]) as source:
        assert load_columns(None, source).n_frames == sum(LENGTHS) - LENGTHS[3]
    (line,) = re.findall('python -c "(.*)"', str(error.value))
    exec(line)
    with formats.open_dataset(file) as source:
        assert len(source.episode(3)["action"]) == 3


def test_without_filters_the_message_says_so(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["data/demo_0/actions"], f["data/demo_0/obs/q"] = np.zeros((3, 2)), np.zeros((3, 2))
    with pytest.raises(FlowleapError, match="no filter 'train', and no others in mask/; episodes="):
        formats.open_dataset(tmp_path / "a.h5", filter="train")
    with pytest.raises(
        FlowleapError, match=r"no column 'actions_abs', only q, action; did you mean 'action'"
    ):
        formats.open_dataset(tmp_path / "a.h5", action="actions_abs")


def test_unusual_nesting_becomes_no_observation(file: Path) -> None:
    with h5py.File(file, "a") as f:
        for demo in f["data"].values():
            demo["initial_state/articulation/robot/root_pose"] = np.zeros((1, 7))
            demo["obs/goal_pose"] = np.zeros((1, 7))
            demo["extra/force"] = np.zeros((len(demo["actions"]), 6))
            demo["data/obs/x"] = np.zeros((len(demo["actions"]), 2))
    with formats.open_dataset(file) as source:
        assert sorted(source.spec.observations) == ["agentview_image", "object", "robot0_eef_pos"]
        assert {"extra.force", "data.obs.x"} < set(source.extra)
        reason = "cannot be read: has 1 rows, not the 5 of the actions"
        assert (
            source.unused["obs.goal_pose"]
            == source.unused["initial_state.articulation.robot.root_pose"]
            == reason
        )
        assert load_columns(None, source).n_frames == sum(LENGTHS)
        assert len(source.episode(2)["extra.force"]) == LENGTHS[2]


def test_memory_stays_flat(tmp_path: Path) -> None:
    """HDF5 would keep ten times 32 MiB of what it knows of the datasets that were read."""
    import psutil

    path = tmp_path / "many.hdf5"
    with h5py.File(path, "w") as f:
        for i in range(3000):
            group = f.create_group(f"data/demo_{i}")
            for k in range(4):
                group[f"obs/k{k}"] = np.zeros((2, 3))
            group["actions"] = np.zeros((2, 2))
    with formats.open_dataset(path) as source:
        use = []
        for i in range(3000):
            source.episode(i)
            if i in (1000, 2999):
                use.append(psutil.Process().memory_info().rss)
    assert use[1] - use[0] < 8e6


# robomimic itself


def robomimic_dataset(path: Path, keys: list[str], to: int, horizon: int) -> Any:
    module = pytest.importorskip("robomimic.utils.dataset", reason="needs robomimic 0.3")
    return module.SequenceDataset(
        hdf5_path=str(path),
        obs_keys=keys,
        dataset_keys=["actions", "rewards"],
        frame_stack=to,
        seq_length=horizon,
        hdf5_cache_mode=None,
        load_next_obs=False,
    )


@pytest.mark.parametrize(("to", "horizon"), [(2, 4), (1, 1), (3, 16)])
@pytest.mark.parametrize("own", [False, True])
def test_robomimic_cuts_the_same_windows(
    file: Path, tmp_path: Path, own: bool, to: int, horizon: int
) -> None:
    """The loader of robomimic on its own file, and on one that we wrote, against our windows of both.

    The episodes are 1 to 12 frames long, so that windows are padded at the start, at the end, and at both.
    """
    if own:
        assert cli.main(["convert", f"source={file}", f"out={tmp_path}/a.zarr"]) == 0
        file = tmp_path / "b.hdf5"
        assert cli.main(["convert", f"source={tmp_path}/a.zarr", f"out={file}"]) == 0
    keys = ["agentview_image", "object", "robot0_eef_pos"]
    theirs = robomimic_dataset(file, keys, to, horizon)
    with formats.open_dataset(file) as source:
        columns = source.columns([*keys, "action"])
        windows = Windows(columns, source.episode_ends, source.spec.with_window(to, horizon, 1))
    assert len(theirs) == len(windows) == sum(LENGTHS)
    ours = windows.gather(np.arange(len(windows)))
    for i in range(len(theirs)):
        item = theirs[i]
        assert len(item["actions"]) == to - 1 + horizon
        for key in keys:  # robomimic stacks To - 1 frames before, and H from the current one on
            known, observed = ours["obs"][key][i], item["obs"][key][:to]
            assert known.dtype == (np.uint8 if key == "agentview_image" else np.float32)
            np.testing.assert_array_equal(known, observed.astype(known.dtype))
        np.testing.assert_array_equal(ours["action"][i], item["actions"][to - 1 :].astype(np.float32))
