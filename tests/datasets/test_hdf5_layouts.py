"""HDF5 files of ALOHA, D4RL, ManiSkill and Isaac Lab: what is read of each, and what is said of near misses."""

from __future__ import annotations

import gc
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowleap.datasets import dataset as formats
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey
from flowleap.scripts.cli import main as cli

h5py = pytest.importorskip("h5py", reason="needs flowleap[formats]")


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def problem(call: Callable[[], object]) -> str:
    """What `call` says is wrong; the files that it has opened are closed."""
    with pytest.raises(FlowleapError) as error:
        call()
    text = str(error.value)
    del error
    gc.collect()
    return text


def jpeg(color: int) -> bytes:
    """A JPEG of one red tone, [24, 32]."""
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(np.full((24, 32, 3), (color, 10, 20), np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


# ALOHA


def aloha(path: Path, n: int, compressed: bool) -> Path:
    with h5py.File(path, "w") as f:
        f.attrs["sim"], f.attrs["compress"] = False, compressed
        f["action"], f["base_action"] = numbers(n, 14, seed=n), numbers(n, 2, seed=n + 1)
        for key in ("qpos", "qvel", "effort"):
            f[f"observations/{key}"] = numbers(n, 14, seed=n + 2)
        frames = [jpeg(10 * i) for i in range(n)]
        if compressed:
            longest = max(map(len, frames))
            padded = [np.frombuffer(frame.ljust(longest, b"\0"), np.uint8) for frame in frames]
            f["observations/images/cam_high"] = np.stack(padded)
            f["compress_len"] = np.array([[len(frame) for frame in frames]])
        else:
            f["observations/images/cam_high"] = np.zeros((n, 24, 32, 3), np.uint8)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_aloha_folders_and_files(tmp_path: Path, compressed: bool) -> None:
    for i, n in ((2, 5), (10, 3), (1, 4)):
        aloha(tmp_path / f"episode_{i}.hdf5", n, compressed)
    assert formats.detect(tmp_path) == formats.detect(tmp_path / "episode_1.hdf5") == "aloha"
    with formats.open_dataset(tmp_path) as source:
        assert [source.label(i) for i in range(3)] == ["episode_1.hdf5", "episode_2.hdf5", "episode_10.hdf5"]
        assert source.spec.observations == {
            "cam_high": ObsKey((24, 32, 3), "uint8", "rgb"),
            **{key: ObsKey((14,)) for key in ("effort", "qpos", "qvel")},
        }
        assert source.spec.action_dim == 14
        assert source.unused == {"base_action": "recorded beside the observations"}
        for i, n in ((2, 3), (0, 4), (1, 5)):
            got = source.episode(i)
            np.testing.assert_array_equal(got["qpos"], numbers(n, 14, seed=n + 2))
            np.testing.assert_array_equal(got["action"], numbers(n, 14, seed=n))
            expected = 10 * np.arange(n) if compressed else np.zeros(n)
            np.testing.assert_allclose(got["cam_high"][:, 0, 0, 0], expected, atol=4)
    assert load_columns(None, formats.open_dataset(tmp_path)).episode_ends.tolist() == [4, 9, 12]
    with formats.open_dataset(tmp_path / "episode_2.hdf5", action=["action", "base_action"]) as source:
        assert (source.n_episodes, source.spec.action_dim) == (1, 16)
        joined = np.concatenate([numbers(5, 14, seed=5), numbers(5, 2, seed=6)], axis=1)
        np.testing.assert_array_equal(source.episode(0)["action"], joined)


def test_images_of_any_length_and_damaged_ones(tmp_path: Path) -> None:
    file = aloha(tmp_path / "episode_0.hdf5", 3, compressed=True)
    with h5py.File(file, "a") as f:
        images = f.create_dataset("observations/images/wrist", (3,), h5py.vlen_dtype(np.uint8))
        for i in range(3):
            images[i] = np.frombuffer(jpeg(70 * i), np.uint8)
    with formats.open_dataset(file) as source:
        assert source.episode(0)["wrist"].shape == (3, 24, 32, 3)
        np.testing.assert_allclose(source.episode(0)["wrist"][:, 5, 5, 0], [0, 70, 140], atol=4)
    with h5py.File(file, "a") as f:
        f["observations/images/wrist"][1] = np.zeros(9, np.uint8)
    with pytest.raises(FlowleapError, match=r"episode_0\.hdf5: 'wrist' holds a damaged image"):
        formats.open_dataset(file).episode(0)


def test_aloha_files_that_differ_are_named(tmp_path: Path) -> None:
    aloha(tmp_path / "episode_0.hdf5", 3, False)
    with h5py.File(aloha(tmp_path / "episode_1.hdf5", 4, False), "a") as f:
        del f["observations/qpos"]
        f["observations/qpos"] = numbers(3, 14)
    with formats.open_dataset(tmp_path) as source:
        expected = "episode_1.hdf5: 'qpos' has 3 rows, the actions have 4"
        assert problem(lambda: source.episode(1)).endswith(expected)
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as f:
        del f["action"]
    with pytest.raises(FlowleapError, match=r"episode_1\.hdf5: 'action' is missing: no dataset action"):
        formats.open_dataset(tmp_path).episode(1)


# D4RL


def d4rl(path: Path, n: int = 12, ends: tuple[int, ...] = (), cuts: tuple[int, ...] = ()) -> Path:
    with h5py.File(path, "w") as f:
        f["observations"], f["actions"] = numbers(n, 5), numbers(n, 2, seed=1)
        f["next_observations"], f["rewards"] = numbers(n, 5, seed=2), numbers(n)
        f["terminals"], f["timeouts"] = np.isin(np.arange(n), ends), np.isin(np.arange(n), cuts)
        f["infos/qpos"] = numbers(n, 3, seed=3)
        f["metadata/policy/weight"] = numbers(7, 7)
    return path


def test_d4rl_is_cut_at_terminals_and_timeouts(tmp_path: Path) -> None:
    file = d4rl(tmp_path / "hopper.hdf5", ends=(2,), cuts=(6,))
    assert formats.detect(file) == "d4rl"
    with formats.open_dataset(file) as source:
        assert source.spec.observations == {"observations": ObsKey((5,))}
        assert set(source.extra) == {"infos.qpos", "rewards", "terminals", "timeouts"}
        assert source.refused == {}
        assert source.episode_ends.tolist() == [3, 7, 12]
        for i, rows in enumerate((slice(0, 3), slice(3, 7), slice(7, 12))):
            got = source.episode(i)
            np.testing.assert_array_equal(got["observations"], numbers(12, 5)[rows])
            np.testing.assert_array_equal(got["action"], numbers(12, 2, seed=1)[rows])
            np.testing.assert_array_equal(got["infos.qpos"], numbers(12, 3, seed=3)[rows])
    with formats.open_dataset(file, keys=["infos.qpos"], episodes=[1]) as source:
        np.testing.assert_array_equal(source.columns()["infos.qpos"], numbers(12, 3, seed=3)[3:7])
    assert load_columns(None, formats.open_dataset(d4rl(tmp_path / "b.h5", ends=(11,)))).n_episodes == 1


def test_d4rl_without_ends_is_not_one_long_episode(tmp_path: Path) -> None:
    file = d4rl(tmp_path / "a.hdf5")
    message = problem(lambda: formats.open_dataset(file))
    assert "no frame of terminals, timeouts is true" in message
    (line,) = re.findall('python -c "(.*)"', message)
    exec(line)
    with formats.open_dataset(file) as source:
        assert source.episode_ends.tolist() == [12]


# ManiSkill


def maniskill(path: Path, nested: bool, lengths: tuple[int, ...] = (4, 6)) -> Path:
    episodes = []
    with h5py.File(path, "w") as f:
        for i, n in enumerate(lengths):
            group = f.create_group(f"traj_{i}")
            group["actions"], group["success"] = numbers(n, 8, seed=i), np.arange(n) == n - 1
            group["env_states/actors/cube"] = numbers(n + 1, 13)
            group["env_init_state"] = numbers(1, 30)
            if nested:
                group["obs/agent/qpos"], group["obs/extra/tcp_pose"] = (
                    numbers(n + 1, 9, seed=i),
                    numbers(n + 1, 7),
                )
                group["obs/sensor_data/base_camera/rgb"] = np.full((n + 1, 16, 16, 3), i, np.uint8)
            else:
                group["obs"] = numbers(n + 1, 9, seed=i)
            episodes.append({"episode_id": i, "episode_seed": 30 + i, "success": i == 1})
    info = {"env_id": "PickCube-v1", "env_kwargs": {"control_mode": "pd_ee_delta_pose", "obs_mode": "state"}}
    path.with_suffix(".json").write_text(json.dumps({"env_info": info, "episodes": episodes}))
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_maniskill_observations_lose_their_last(tmp_path: Path, nested: bool) -> None:
    file = maniskill(tmp_path / "trajectory.h5", nested)
    assert formats.detect(file) == "maniskill"
    key = "agent.qpos" if nested else "obs"
    expected = {key: ObsKey((9,))}
    if nested:
        expected |= {"extra.tcp_pose": ObsKey((7,))}
        expected |= {"sensor_data.base_camera.rgb": ObsKey((16, 16, 3), "uint8", "rgb")}
    with formats.open_dataset(file) as source:
        assert source.spec.observations == expected
        assert set(source.extra) == {"env_states.actors.cube", "success"}
        assert source.unused["env_init_state"].startswith("cannot be read: has 1 rows")
        assert source.spec.action_convention == "delta"
        assert (source.spec.source["env"], source.seed(1)) == ("PickCube-v1", 31)
        for i, n in enumerate((4, 6)):
            got = source.episode(i)
            assert {len(values) for values in got.values()} == {n}
            np.testing.assert_array_equal(got[key], numbers(n + 1, 9, seed=i)[:-1])
    with formats.open_dataset(file, filter="success") as source:
        assert [source.label(i) for i in range(source.n_episodes)] == ["traj_1"]


def test_maniskill_without_json_or_observations(tmp_path: Path) -> None:
    file = maniskill(tmp_path / "a.h5", nested=False)
    file.with_suffix(".json").unlink()
    with formats.open_dataset(file) as source:
        assert (source.n_episodes, source.seed(0), source.spec.action_convention) == (2, None, "absolute")
    file.with_suffix(".json").write_text('{"episodes": [3]}')
    with pytest.raises(FlowleapError, match=r"a\.json' is damaged"):
        formats.open_dataset(file)
    file.with_suffix(".json").unlink()
    with h5py.File(file, "a") as f:
        del f["traj_0/obs"]
    with pytest.raises(
        FlowleapError, match=r"traj_0 has no observations in 'obs'.*replay_trajectory --traj-path"
    ):
        formats.open_dataset(file)


# Isaac Lab


def isaac(path: Path, flat: bool = False, lengths: tuple[int, ...] = (5, 7, 3)) -> Path:
    with h5py.File(path, "w") as f:
        data = f.create_group("data")
        sim = {"dt": 0.01, "decimation": 5, "render_interval": 5, "num_envs": 1}
        args = {"env_name": "Isaac-Stack-Cube-Franka-IK-Rel-v0", "type": 2, "sim_args": sim}
        data.attrs["env_args"], data.attrs["total"] = json.dumps(args), sum(lengths)
        for i, n in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"], demo.attrs["success"] = n, i != 1
            demo["actions"], demo["processed_actions"] = numbers(n, 7, seed=i), numbers(n, 7)
            demo["initial_state/articulation/robot/joint_position"] = numbers(1, 9)
            demo["states/articulation/robot/joint_position"] = numbers(n, 9)
            if flat:
                demo["obs"] = numbers(n, 9, seed=i)
                continue
            demo["obs/joint_pos"], demo["obs/actions"] = numbers(n, 9, seed=i), numbers(n, 7)
            demo["obs/policy/eef_pos"] = numbers(n, 3)
            demo["obs/datagen_info/eef_pose/franka"] = numbers(n, 4, 4)
            demo["obs/datagen_info/subtask_term_signals/grasp_1"] = np.zeros(n, bool)
    return path


def test_isaac_lab_states_are_no_observations(tmp_path: Path) -> None:
    file = isaac(tmp_path / "dataset.hdf5")
    assert formats.detect(file) == "isaac_lab"
    with formats.open_dataset(file) as source:
        assert source.spec.observations == {"joint_pos": ObsKey((9,)), "policy.eef_pos": ObsKey((3,))}
        assert "states.articulation.robot.joint_position" in source.extra
        assert "datagen_info.eef_pose.franka" in source.extra
        assert source.unused["actions"] == "an action"
        assert "initial_state.articulation.robot.joint_position" in source.refused
        assert (source.spec.control_hz, source.spec.action_convention) == (20.0, "delta")
        assert source.attrs == {"masks": {"success": [0, 2]}}
        for i, n in enumerate((5, 7, 3)):
            got = source.episode(i)
            np.testing.assert_array_equal(got["joint_pos"], numbers(n, 9, seed=i))
            np.testing.assert_array_equal(got["action"], numbers(n, 7, seed=i))
    with formats.open_dataset(file, filter="success") as source:
        assert [source.label(i) for i in range(source.n_episodes)] == ["demo_0", "demo_2"]
    assert load_columns(None, formats.open_dataset(file)).episode_ends.tolist() == [5, 12, 15]


def test_isaac_lab_observations_in_one_dataset(tmp_path: Path) -> None:
    file = isaac(tmp_path / "dataset.hdf5", flat=True)
    assert formats.detect(file) == "isaac_lab"
    with formats.open_dataset(file) as source:
        assert source.spec.observations == {"obs": ObsKey((9,))}
        np.testing.assert_array_equal(source.episode(2)["obs"], numbers(3, 9, seed=2))


def test_isaac_lab_files_become_others_and_need_observations(tmp_path: Path) -> None:
    file = isaac(tmp_path / "dataset.hdf5")
    out = tmp_path / "out.hdf5"
    assert cli.main(["convert", f"source={file}", f"out={out}", "keys=[joint_pos]", "filter=success"]) == 0
    assert formats.detect(out) == "robomimic"
    with formats.open_dataset(out) as source:
        np.testing.assert_array_equal(source.episode(1)["joint_pos"], numbers(3, 9, seed=2))
    with h5py.File(file, "a") as f:
        for demo in f["data"].values():
            del demo["obs"]
    assert "record them, with record_pre_step_flat" in problem(lambda: formats.open_dataset(file))


# All


def test_every_verb_takes_the_name_of_the_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = aloha(tmp_path / "a.hdf5", 5, compressed=True)
    small = [
        "trainer.dry_run=true",
        "trainer.device=cpu",
        "backbone.width=16",
        "backbone.depth=1",
        "horizon=4",
    ]
    train = ["train", f"dataset={file}", f"run_dir={tmp_path / 'run'}", "n_action_steps=4", *small]
    for command in (["inspect", f"dataset={file}"], train):
        assert cli.main([*command, "action=[action,base_action]"]) == 0
        assert "action [16]" in capsys.readouterr().out
        assert cli.main([*command, "action=bass_action"]) == 1
        assert "no column 'bass_action'" in capsys.readouterr().err
    assert cli.main(["convert", f"source={file}", f"out={tmp_path / 'a.zarr'}", "action=base_action"]) == 0
    with formats.open_dataset(tmp_path / "a.zarr") as source:
        np.testing.assert_array_equal(source.episode(0)["action"], numbers(5, 2, seed=6))


def linked(file: Any, name: str, other: Path) -> None:
    with h5py.File(other, "w") as f:
        f["x"] = numbers(99, 14)
    del file[name]
    file[name] = h5py.ExternalLink(str(other), "x")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda path: aloha(path, 4, False), "action"),
        (lambda path: d4rl(path, ends=(11,)), "terminals"),
        (lambda path: d4rl(path, ends=(11,)), "actions"),
        (lambda path: maniskill(path, False), "traj_1/actions"),
        (isaac, "data/demo_1/actions"),
    ],
)
def test_other_files_are_not_read(tmp_path: Path, make: Any, name: str) -> None:
    file = make(tmp_path / "a.hdf5")
    with h5py.File(file, "a") as f:
        linked(f, name, tmp_path / "other.hdf5")
    with pytest.raises(FlowleapError, match=r"a\.hdf5'.* stored in another file"):
        load_columns(None, formats.open_dataset(file))
