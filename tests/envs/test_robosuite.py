"""robosuite: seeds decide everything, robomimic's env_args decide the rest, no OpenGL without rendering."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from flowleap.envs import rendering as gl
from flowleap.envs.demonstrate import Demonstration, demonstrate
from flowleap.envs.registry import make_task
from flowleap.envs.rollout import record_episode, rollout
from flowleap.envs.task import Task
from flowleap.envs.tasks.robosuite import STATES, TASKS, RobosuiteEnv, default_env_args, reset_to
from flowleap.policy.core.errors import FlowleapError

# What a step observes, robosuite computes before the last 2 ms of its motion; a state that was set, afterwards.
# The gripper moves at up to 0.3 m/s.
LAG = 2e-3


def needs_robosuite() -> None:
    """Skip where it is absent. Not `importorskip`: an import by others chooses an OpenGL for the whole process."""
    if importlib.util.find_spec("robosuite") is None:
        pytest.skip("needs flowleap[robosuite]")


@cache
def robosuite_env(name: str = "lift") -> tuple[Task, RobosuiteEnv]:
    """A task and its environment, made once."""
    needs_robosuite()
    task = make_task(f"robosuite/{name}")
    env = task.make_env()
    assert isinstance(env, RobosuiteEnv)
    return task, env


def trajectory(env: RobosuiteEnv, seed: int, steps: int = 12) -> list[bytes]:
    """States of one episode of seeded random actions, bit for bit."""
    obs, info = env.reset(seed=seed)
    seen = [info[STATES].tobytes(), *(value.tobytes() for value in obs.values())]
    for action in np.random.default_rng(seed).uniform(-1, 1, (steps, 7)):
        obs, _, _, _, info = env.step(action)
        seen += [info[STATES].tobytes(), *(value.tobytes() for value in obs.values())]
    return seen


@pytest.mark.parametrize("name", TASKS)
def test_what_the_task_says_is_what_the_environment_gives(name: str) -> None:
    task, env = robosuite_env(name)
    spec = task.spec
    obs, info = env.reset(seed=0)
    assert {key: value.shape for key, value in obs.items()} == {
        key: key_spec.shape for key, key_spec in spec.observations.items()
    }
    assert env.observation_space.contains(obs)
    assert {key: info[key].shape for key in task.recording.info_columns} == {
        key: column.shape for key, column in task.recording.info_columns.items()
    }
    assert env.action_space.shape == (spec.action_dim,) == env.sim.action_spec[0].shape
    assert (spec.control_hz, spec.action_convention) == (env.sim.control_freq, "delta")
    assert env.step(np.zeros(7, np.float32))[4]["success"] is False


def test_an_episode_depends_on_its_seed_alone() -> None:
    task, used = robosuite_env()
    fresh: Any = task.make_env()
    demonstrate(task, used, seed=8)  # moves arm, fingers and cube about
    np.random.seed(5)  # noqa: NPY002
    first = trajectory(used, 3)
    drawn = np.random.rand()  # noqa: NPY002
    assert first == trajectory(fresh, 3)
    assert first[0] != trajectory(fresh, 4)[0]
    np.random.seed(5)  # noqa: NPY002
    assert np.random.rand() == drawn, "the caller's generator was touched"  # noqa: NPY002


def test_the_expert_lifts_the_cube_and_the_evaluator_stops_there() -> None:
    task, env = robosuite_env()
    for seed in range(3):
        attempt = demonstrate(task, env, seed, action_noise=0.1, hold_steps=2)
        assert attempt.success
        actions = attempt.columns["action"]
        assert len(actions) < 60
        assert actions.dtype == np.float32
        assert np.abs(actions).max() <= 1.0
        assert attempt.columns[STATES].shape == (len(actions), 32)

    def actor(obs: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        assert task.expert is not None
        return task.expert(env, 0).act({key: value[0, -1] for key, value in obs.items()})[None, None]

    spec = task.spec.with_window(1, 1, 1)
    (episode,) = rollout(task, actor, spec, [100000]).episodes
    assert episode.success
    assert episode.length < 60


@cache
def attempt(name: str) -> Demonstration:
    """One disturbed attempt of the expert of Can or Square."""
    task, env = robosuite_env(name)
    return demonstrate(task, env, seed=0, action_noise=0.1, hold_steps=2)


@pytest.mark.parametrize("name", ["can", "square"])
def test_the_experts_carry_things_to_their_places(name: str) -> None:
    assert attempt(name).success
    actions = attempt(name).columns["action"]
    assert len(actions) < 200
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0
    assert set(np.unique(actions[:, 6])) == {-1.0, 1.0}


@pytest.mark.parametrize(("name", "first"), [("lift", 0), ("can", -12), ("square", -12)])
def test_it_is_robomimics_environment(name: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same scene and state, the same actions lead to the same numbers, up to and after success."""
    task, env = robosuite_env(name)
    columns = (demonstrate(task, env, 0, hold_steps=2) if name == "lift" else attempt(name)).columns
    env.reset(seed=0)
    scene = env.sim.sim.model.get_xml()
    # It imports mujoco_py for the name of one exception that mujoco does not raise.
    monkeypatch.setitem(sys.modules, "mujoco_py", ModuleType("mujoco_py"))
    wrapper = pytest.importorskip("robomimic.envs.env_robosuite", reason="needs robomimic 0.3")
    modalities = pytest.importorskip("robomimic.utils.obs_utils")
    modalities.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(task.spec.observations)}})
    args = default_env_args(name)
    theirs = wrapper.EnvRobosuite(args["env_name"], **args["env_kwargs"])
    state = columns[STATES][first]
    expected = theirs.reset_to({"model": scene, "states": state})
    obs, outcomes = env.reset_to(state, scene), []
    assert task.expert is not None
    expert = task.expert(env, 0)
    while (
        len(outcomes) < 80 and (1.0, True) not in outcomes
    ):  # the controllers begin anew: recorded actions may miss
        action = expert.act(obs)
        for key, value in obs.items():
            np.testing.assert_array_equal(value, expected[key].astype(np.float32))
        expected, reward, _, _ = theirs.step(action)
        obs, ours, _, _, info = env.step(action)
        assert (ours, info["success"]) == (reward, theirs.is_success()["task"])
        np.testing.assert_array_equal(info[STATES], theirs.get_state()["states"])
        outcomes.append((ours, info["success"]))
    assert outcomes[0] == (0.0, False)
    assert outcomes[-1] == (1.0, True)


def test_a_recorded_state_comes_back() -> None:
    task, env = robosuite_env()
    attempt = demonstrate(task, env, seed=1)
    columns = attempt.columns
    env.reset(seed=1)
    middle = len(columns["action"]) // 2
    obs = reset_to(env, {STATES: columns[STATES][middle]})
    np.testing.assert_array_equal(env.sim.sim.get_state().flatten(), columns[STATES][middle])
    for key, value in obs.items():
        np.testing.assert_allclose(value, columns[key][middle], atol=LAG)
    model = env.sim.sim.model.get_xml()
    env.reset(seed=2)  # another cube
    other = env.sim.sim.model.geom_size.copy()
    obs = env.reset_to(columns[STATES][middle], model)
    np.testing.assert_allclose(obs["object"], columns["object"][middle], atol=LAG)
    assert np.abs(env.sim.sim.model.geom_size - other).max() > 1e-6
    with pytest.raises(FlowleapError, match=r"has shape \(32,\), not \(45,\)"):
        env.reset_to(np.zeros(45))


def test_env_args_make_the_environment() -> None:
    needs_robosuite()
    args = default_env_args("lift")
    args["env_kwargs"]["controller_configs"]["control_delta"] = False
    args["env_kwargs"] |= {
        "control_freq": 10,
        "camera_depths": False,
        "camera_heights": 84,
        "render_gpu_device_id": 0,
    }
    kept = copy.deepcopy(args)
    task = make_task("robosuite/lift", env_args=args)
    assert (task.spec.control_hz, task.spec.action_convention) == (10.0, "absolute")
    env: Any = task.make_env()
    obs, _ = env.reset(seed=0)
    assert env.sim.control_freq == 10
    # Absolute actions: ask for the pose half a metre off, and the arm leaves at once, further than a delta of 1 would.
    target = np.array([*obs["robot0_eef_pos"], np.pi, 0.0, 0.0, -1.0], np.float32)
    target[0] += 0.5
    for _ in range(4):
        moved = env.step(target)[0]
    assert moved["robot0_eef_pos"][0] - obs["robot0_eef_pos"][0] > 0.21
    assert args == kept


def composite(input_type: str = "delta") -> dict[str, Any]:
    """A controller as robosuite 1.5 describes it."""
    arm = {
        "type": "OSC_POSE",
        "input_type": input_type,
        "input_ref_frame": "base",
        "gripper": {"type": "GRIP"},
    }
    return {"type": "BASIC", "body_parts": {"right": arm}}


@pytest.mark.parametrize("found", ["PickPlaceCan", "Stack", "TwoArmLift", None])
def test_env_args_of_other_environments_say_what_to_do(found: str | None) -> None:
    args = default_env_args("can") | {"env_name": found}
    remedy = (
        "say task=robosuite/can" if found == "PickPlaceCan" else "no task here simulates it; leave out task="
    )
    with pytest.raises(
        FlowleapError, match=f"robosuite/lift is robosuite's Lift, but env_args describe {found!r}: {remedy}"
    ):
        make_task("robosuite/lift", env_args=args)


@pytest.mark.parametrize(
    ("version", "controller"),
    [
        ("1.5.1", composite()),
        ("1.5.0", default_env_args("can")["env_kwargs"]["controller_configs"]),
        ("1.10", composite()),
        (None, composite()),
    ],
)
def test_recordings_of_robosuite_15_are_refused_with_a_way_on(version: str | None, controller: Any) -> None:
    args = default_env_args("can")
    del args["env_version"]
    if version is not None:
        args["env_version"] = version
    args["env_kwargs"]["controller_configs"] = controller
    with pytest.raises(
        FlowleapError,
        match=rf"recorded with robosuite {version or '1.5'}, .*`flowleap download robomimic/can_ph_v141`\), leave "
        r"out task=\.\.\. to train without a simulator, or say \+task\.kwargs\.env_args=null",
    ):
        make_task("robosuite/can", env_args=args)


def test_absolute_actions_of_robosuite_15_are_not_for_the_default_controller() -> None:
    args = default_env_args("can")
    args["env_kwargs"]["controller_configs"] = composite("absolute")
    with pytest.raises(FlowleapError, match=r"leave out task=\.\.\. to train without a simulator$"):
        make_task("robosuite/can", env_args=args)


def test_incomplete_env_args_are_refused() -> None:
    with pytest.raises(FlowleapError, match="have no env_kwargs"):
        make_task("robosuite/can", env_args={"env_name": "PickPlaceCan"})
    args = default_env_args("can")
    args["env_kwargs"]["robots"] = ["Panda", "Panda"]
    with pytest.raises(
        FlowleapError, match=r"have the robots \['Panda', 'Panda'\], robosuite/can has one arm; leave"
    ):
        make_task("robosuite/can", env_args=args)
    args["env_kwargs"]["robots"] = "Panda"
    del args["env_kwargs"]["controller_configs"]
    with pytest.raises(FlowleapError, match=r"have no controller_configs of robosuite 1\.4"):
        make_task("robosuite/can", env_args=args)


def test_unknown_env_kwargs_are_named() -> None:
    needs_robosuite()
    args = default_env_args("lift")
    args["env_kwargs"]["gravity"] = 1
    with pytest.raises(FlowleapError, match=r"refuses the env_args .* of robosuite 1.4.1: .*'gravity'"):
        make_task("robosuite/lift", env_args=args).make_env()


def test_without_rendering_no_opengl_is_loaded_and_nothing_is_printed() -> None:
    needs_robosuite()
    environment = {
        key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    }
    code = (
        "import os, sys\n"
        "from flowleap.envs.registry import make_task\n"
        "env = make_task('robosuite/lift').make_env()\n"
        "env.reset(seed=0); env.step(env.action_space.low); env.close()\n"
        "assert not {'MUJOCO_GL', 'PYOPENGL_PLATFORM'} & set(os.environ)\n"
        "sys.exit(' '.join(m for m in sys.modules if m.startswith(('OpenGL', 'torch', 'pynput'))) or 0)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_recorded_episode_is_the_evaluated_one() -> None:
    robosuite_env()
    try:
        gl.choose_gl()
    except FlowleapError as error:
        pytest.skip(str(error))
    task = make_task("robosuite/lift", max_steps=8, image_size=96)
    spec = task.spec.with_window(1, 4, 4)

    def actor(obs: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        return np.clip(noise, -1, 1)

    frames, record = record_episode(task, actor, spec, 5)
    assert record == rollout(task, actor, spec, [5]).episodes[0]
    assert frames.shape == (9, 96, 96, 3)
    assert (frames[0] != frames[-1]).any()
    red = (
        frames[0][..., 0].astype(int) - frames[0][..., 1:].max(axis=-1)
    ) > 60  # the cube, not its green collision box
    assert red.sum() > 10


def test_a_controller_without_its_package_is_one_error() -> None:
    needs_robosuite()
    if importlib.util.find_spec("pybullet") is not None:
        pytest.skip("pybullet is there")
    env_args = copy.deepcopy(default_env_args("lift"))
    env_args["env_kwargs"]["controller_configs"] = {
        "type": "IK_POSE",
        "ik_pos_limit": 0.02,
        "ik_ori_limit": 0.05,
        "interpolation": None,
        "ramp_ratio": 0.2,
    }
    with pytest.raises(FlowleapError, match="controller IK_POSE of env_args needs pybullet"):
        make_task("robosuite/lift", env_args=env_args).make_env()
    del env_args["env_kwargs"]["controller_configs"]["interpolation"]
    with pytest.raises(
        FlowleapError, match=r"refuses the env_args \(controller IK_POSE\).*KeyError: 'interpolation'"
    ):
        make_task("robosuite/lift", env_args=env_args).make_env()
