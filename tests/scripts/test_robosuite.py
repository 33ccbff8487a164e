"""From robosuite to robomimic and back: what `collect` and `convert` write, robomimic's own wrapper plays back."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

# Now, before any test renders: triton's LLVM, loaded after Mesa's, ends the process.
import flowleap.policy.training.trainer  # noqa: F401
from flowleap.datasets.dataset import open_dataset
from flowleap.envs.registry import make_task
from flowleap.envs.task_data import with_recorded_env
from flowleap.envs.tasks.robosuite import default_env_args
from flowleap.policy.checkpoint import read_manifest, resolve
from flowleap.scripts.cli import main as cli

h5py = pytest.importorskip("h5py", reason="needs flowleap[formats]")


@pytest.fixture(scope="module")
def lift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of Lift as a robomimic file, after a way through zarr."""
    # Not `importorskip`: an import by others chooses an OpenGL for the whole process.
    if importlib.util.find_spec("robosuite") is None:
        pytest.skip("needs flowleap[robosuite]")
    folder = tmp_path_factory.mktemp("lift")
    store, file = folder / "lift.zarr", folder / "lift.hdf5"
    words = ["task=robosuite/lift", "episodes=2", "n_envs=1", "hold_steps=1", f"out={store}"]
    assert cli.main(["collect", *words]) == 0
    assert cli.main(["convert", f"source={store}", f"out={file}"]) == 0
    return file


@pytest.fixture
def theirs(lift: Path, tmp_path: Path) -> Path:
    """The file as one of others: nothing but what robomimic's scripts write."""
    file = tmp_path / "theirs.hdf5"
    shutil.copy(lift, file)
    with h5py.File(file, "a") as f:
        del f["flowleap"]
    return file


def test_robomimic_plays_the_file_back(lift: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The wrapper imports mujoco_py for the name of one exception that mujoco does not raise.
    monkeypatch.setitem(sys.modules, "mujoco_py", ModuleType("mujoco_py"))
    wrapper = pytest.importorskip("robomimic.envs.env_robosuite", reason="needs robomimic 0.3")
    with h5py.File(lift) as f:
        meta = json.loads(f["data"].attrs["env_args"])
        demo = {key: f[f"data/demo_1/{key}"][()] for key in ("states", "actions")}
        recorded = {key: values[()] for key, values in f["data/demo_1/obs"].items()}
    modalities = pytest.importorskip("robomimic.utils.obs_utils")
    modalities.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": sorted(recorded)}})
    env = wrapper.EnvRobosuite(meta["env_name"], **meta["env_kwargs"])
    for t in (0, len(demo["states"]) // 2, -1):
        obs = env.reset_to({"states": demo["states"][t]})
        for key, values in recorded.items():
            np.testing.assert_allclose(obs[key], values[t], atol=2e-3)  # 2 ms apart while the arm moves
    env.reset_to({"states": demo["states"][0]})
    for action in demo["actions"]:
        env.step(action)
    assert env.is_success()["task"]


def test_replay_of_seeds_and_of_a_file_by_robomimic(
    lift: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From seeds all is as it was; from `states`, the scene of each episode (`model_file`) has to come with them."""
    words = ["replay", "task=robosuite/lift", f"out={tmp_path}/r.json"]

    def replayed(dataset: Path) -> list[dict[str, Any]]:
        assert cli.main([*words, f"dataset={dataset}"]) == 0
        rows: list[dict[str, Any]] = json.loads((tmp_path / "r.json").read_text())["rows"]
        return rows

    assert [row["mean_difference"] for row in replayed(lift)] == [0.0, 0.0]
    file = tmp_path / "public.hdf5"
    shutil.copy(lift, file)
    env = make_task("robosuite/lift").make_env()
    with h5py.File(file, "a") as f:
        del f["flowleap"]  # and with it the seeds
        for demo in f["data"].values():
            env.reset(seed=int(demo.attrs["seed"]))
            demo.attrs["model_file"] = env.unwrapped.sim.sim.model.get_xml()
    env.close()
    rows = replayed(file)
    assert all(row["reached"] and row["outcome"]["success"] for row in rows)
    assert all(row["start_difference"] < 1e-3 and row["mean_difference"] < 1e-2 for row in rows)
    with h5py.File(file, "a") as f:
        attrs = f["data/demo_0"].attrs
        attrs["model_file"] = attrs["model_file"].replace("<worldbody>", '<worldbody unknown="1">')
    capsys.readouterr()
    assert cli.main([*words, f"dataset={file}"]) == 1
    assert "scene of the recording" in capsys.readouterr().err


def test_six_dimensional_rotations_meet_the_environment_in_its_own(lift: Path, tmp_path: Path) -> None:
    six, run = tmp_path / "six.zarr", tmp_path / "run"
    assert cli.main(["convert", f"source={lift}", f"out={six}", "rotation=6d"]) == 0
    words = [f"dataset={six}", "task=robosuite/lift"]
    assert cli.main(["replay", *words, f"out={tmp_path}/r.json"]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["outcome"]["success"] for row in rows] == [True, True]
    assert max(row["mean_difference"] for row in rows) < 1e-5  # not a bit more than the rounding of actions
    small = ["backbone.width=16", "backbone.depth=1", "trainer.steps=2", "trainer.device=cpu"]
    assert cli.main(["train", *words, f"run_dir={run}", *small]) == 0
    spec = read_manifest(resolve(run))["spec"]
    assert (spec["action_dim"], spec["source"]["rotation_dims"]) == (10, [[3, 9]])
    words = [f"checkpoint={run}", "task=robosuite/lift", "episodes=1", "n_envs=1", "videos=0"]
    assert cli.main(["eval", *words]) == 0
    assert cli.main(["export", f"checkpoint={run}"]) == 0


def test_training_takes_the_environment_from_the_file(theirs: Path, tmp_path: Path) -> None:
    with h5py.File(theirs, "a") as f:
        args = json.loads(f["data"].attrs["env_args"])
        assert args == default_env_args("lift")
        args["env_kwargs"]["control_freq"] = 10
        f["data"].attrs["env_args"] = json.dumps(args)
    run = tmp_path / "run"
    small = [
        "backbone.width=16",
        "backbone.depth=1",
        "trainer.steps=2",
        "trainer.batch_size=4",
        "trainer.device=cpu",
    ]
    words = [f"dataset={theirs}", "task=robosuite/lift", f"run_dir={run}", "trainer.eval_every=0", *small]
    assert cli.main(["train", *words]) == 0
    manifest = read_manifest(resolve(run))
    assert manifest["info"]["task"] == {"name": "robosuite/lift", "kwargs": {"env_args": args}}
    assert cli.main(["eval", f"checkpoint={run}", "episodes=1", "n_envs=1", "videos=0", "device=cpu"]) == 0
    results = json.loads((run / "eval" / "robosuite-lift_nfe1.json").read_text())
    assert results["rows"][0]["length"] == 400
    assert OmegaConf.load(run / "config.yaml").task.kwargs == {}


def test_given_env_args_win_and_other_tasks_take_none(theirs: Path) -> None:
    assert with_recorded_env("robosuite/lift", {"env_args": None}, open_dataset(theirs)) == {"env_args": None}
    assert set(with_recorded_env("robosuite/lift", {"max_steps": 9}, open_dataset(theirs))) == {
        "max_steps",
        "env_args",
    }
    assert with_recorded_env("pusht/keypoints", {}, open_dataset(theirs)) == {}


def test_files_of_robosuite_15_are_refused_before_training(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedies of the message work: without a task, or in the default environment; images need no other one."""
    file, words = theirs, ["backbone.width=16", "backbone.depth=1", "trainer.device=cpu"]
    with h5py.File(file, "a") as f:
        args = json.loads(f["data"].attrs["env_args"]) | {"env_version": "1.5.1"}
        arm = {"type": "OSC_POSE", "input_type": "delta"}
        args["env_kwargs"]["controller_configs"] = {"type": "BASIC", "body_parts": {"right": arm}}
        f["data"].attrs["env_args"] = json.dumps(args)
    train = ["train", f"dataset={file}", f"run_dir={tmp_path / 'run'}", "trainer.dry_run=true", *words]
    for command in ([*train, "task=robosuite/lift"], ["replay", f"dataset={file}", "task=robosuite/lift"]):
        assert cli.main(command) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "recorded with robosuite 1.5.1" in line
    assert cli.main(train) == 0
    assert cli.main([*train, "task=robosuite/lift", "+task.kwargs.env_args=null"]) == 0
    with h5py.File(file, "a") as f:
        args = default_env_args("lift")
        args["env_kwargs"] |= {"camera_names": ["agentview"], "camera_heights": 84, "use_camera_obs": True}
        f["data"].attrs["env_args"] = json.dumps(args)
    assert cli.main([*train, "task=robosuite/lift"]) == 0
