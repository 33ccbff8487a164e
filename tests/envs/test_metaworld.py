"""MetaWorld: seeds decide everything, the benchmark's physics, success, no OpenGL without rendering."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from flowleap.envs import rendering as gl
from flowleap.envs.chunk_env import ChunkEnv
from flowleap.envs.demonstrate import demonstrate
from flowleap.envs.registry import make_task
from flowleap.envs.rollout import record_episode, rollout
from flowleap.policy.core.errors import FlowleapError

env_dict = pytest.importorskip("metaworld.env_dict")

# Between them: bodies moved late in the reset, rejection sampling of placements, free objects, hinges.
NAMES = ["door-open-v3", "disassemble-v3", "dial-turn-v3", "push-v3", "peg-insert-side-v3", "window-open-v3"]


def trajectory(env, seed: int, steps: int = 25) -> list[bytes]:
    """Observations and rewards of one episode of seeded random actions, bit for bit."""
    obs, _ = env.reset(seed=seed)
    seen = [obs["state"].tobytes()]
    for action in np.random.default_rng(seed).uniform(-1, 1, (steps, 4)):
        obs, reward, *_ = env.step(action)
        seen += [obs["state"].tobytes(), np.float64(reward).tobytes()]
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_depends_on_its_seed_alone(name):
    task = make_task(f"metaworld/{name}")
    used, fresh = task.make_env(), task.make_env()
    demonstrate(task, used, seed=8)  # moves hand, object and goal about
    trajectory(used, 9, steps=60)
    first = trajectory(used, 3)
    assert first == trajectory(fresh, 3)
    assert first[0] != trajectory(fresh, 4)[0]


def test_a_reset_restores_whatever_was_changed():
    task = make_task("metaworld/push-v3")
    env = task.make_env()
    expected = trajectory(env, 3)
    env.sim.model.body_pos[:] += 0.01
    env.sim.data.qvel[:] = 1.0
    env.sim.hand_init_pos = env.sim.hand_init_pos + 0.02
    env.sim.left_over = True
    assert trajectory(env, 3) == expected
    assert not hasattr(env.sim, "left_over")


def test_placements_are_not_the_benchmarks_fifty():
    env = make_task("metaworld/door-open-v3").make_env()
    goals = {env.reset(seed=seed)[0]["state"][36:].tobytes() for seed in range(60)}
    assert len(goals) == 60


@pytest.mark.parametrize("name", NAMES)
def test_physics_is_the_benchmarks(name):
    """The same placement in MetaWorld's own class gives the same observations, from the reset on."""
    task = make_task(f"metaworld/{name}")
    env = task.make_env()
    obs, _ = env.reset(seed=3)
    reference = env_dict.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name}-goal-observable"](seed=0)
    reference._last_rand_vec = env.sim._last_rand_vec.copy()
    expected, _ = reference.reset()
    expert = task.expert(env, 3)
    for _ in range(40):
        np.testing.assert_array_equal(obs["state"], expected.astype(np.float32))
        action = expert.act(obs)
        obs, reward, _, _, info = env.step(action)
        expected, expected_reward, _, _, expected_info = reference.step(action)
        assert reward == expected_reward
        assert info["success"] == bool(expected_info["success"])


def test_outcomes_do_not_depend_on_the_number_of_environments():
    task = make_task("metaworld/reach-v3", max_steps=60)
    spec = task.spec.with_window(1, 4, 4)

    def actor(obs, noise):
        towards_goal = obs["state"][:, :, 36:] - obs["state"][:, :, :3]
        reach = np.concatenate([10 * towards_goal, np.zeros((len(noise), 1, 1))], axis=-1)
        return np.repeat(reach, 4, axis=1) + 0.3 * noise

    seeds = [4, 100000, 2, 9]
    serial = rollout(task, actor, spec, seeds)
    assert serial.episodes == rollout(task, actor, spec, seeds, n_envs=2).episodes
    assert sum(e.success for e in serial.episodes) >= 2
    assert all(e.length < 60 for e in serial.episodes if e.success)  # success ends an episode
    assert task.spec.control_hz == pytest.approx(1 / task.make_env().sim.dt)


def test_the_expert_stays_inside_the_action_space():
    task = make_task("metaworld/push-v3")
    attempt = demonstrate(task, task.make_env(), seed=0, hold_steps=5)
    assert attempt.success
    actions = attempt.columns["action"]
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0
    assert attempt.columns["state"].shape == (len(actions), 39)


def test_the_time_limit_is_an_option():
    task = make_task("metaworld/door-open-v3", max_steps=30)
    attempt = demonstrate(task, task.make_env(), seed=0)
    assert (attempt.success, len(attempt.columns["action"])) == (False, 30)
    long = make_task("metaworld/door-open-v3", max_steps=520)  # beyond MetaWorld's own limit
    idle = rollout(long, lambda obs, noise: np.zeros((1, 40, 4)), long.spec.with_window(1, 40, 40), [0])
    assert idle.episodes[0].length == 520


def test_without_rendering_no_opengl_is_loaded(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)  # MuJoCo imports the backend named there
    code = (
        "import sys; from flowleap.envs.registry import make_task\n"
        "env = make_task('metaworld/reach-v3').make_env()\n"
        "env.reset(seed=0); env.step(env.action_space.low)\n"
        "env.close(); sys.exit(' '.join(m for m in sys.modules if m.startswith(('OpenGL', 'torch'))) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-500:]


def test_a_broken_mujoco_gl_is_named(monkeypatch):
    code = (
        "from flowleap.envs.registry import make_task; from flowleap.policy.core.spec import FlowleapError\n"
        "try: make_task('metaworld/reach-v3').make_env()\n"
        "except FlowleapError as error: print(error)"
    )
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MUJOCO_GL=nonsense does not work here" in result.stdout


@pytest.mark.usefixtures("renders")
def test_a_recorded_episode_is_the_evaluated_one_and_upright():
    task = make_task("metaworld/door-open-v3", max_steps=12, image_size=96)
    spec = task.spec.with_window(1, 4, 4)

    def actor(obs, noise):
        return np.clip(noise, -1, 1)

    frames, record = record_episode(task, actor, spec, 5)
    assert record == rollout(task, actor, spec, [5]).episodes[0]
    assert frames.shape == (13, 96, 96, 3)
    assert (frames[0] != frames[-1]).any()
    wood = (
        frames[0][..., 0].astype(int) - frames[0][..., 2]
    ) > 30  # the table, brown, is below the robot's hand
    wood &= frames[0][..., 1] > 60
    assert wood[48:].sum() > 5 * wood[:48].sum()


@pytest.mark.usefixtures("renders")
def test_cameras_show_the_state_that_the_state_task_has():
    """Same seed, same expert: the camera task records the same episode, with images for what the state tells."""
    plain = make_task("metaworld/reach-v3", max_steps=12)
    seen = make_task("metaworld/reach-v3", max_steps=12, cameras=["corner2", "topview"], camera_size=32)
    state, images = (demonstrate(task, task.make_env(), seed=5).columns for task in (plain, seen))
    assert {key: x.shape for key, x in images.items()} == {
        "corner2": (12, 32, 32, 3),
        "topview": (12, 32, 32, 3),
        "hand": (12, 4),
        "action": (12, 4),
    }
    np.testing.assert_array_equal(images["action"], state["action"])
    np.testing.assert_array_equal(images["hand"], state["state"][:, :4])
    for camera in ("corner2", "topview"):
        assert images[camera].dtype == np.uint8
        assert (images[camera][0] != images[camera][-1]).any()
    assert (images["corner2"][0] != images["topview"][0]).any()


@pytest.mark.usefixtures("renders")
def test_only_the_cameras_of_the_policy_are_rendered_and_only_when_it_looks():
    task = make_task("metaworld/reach-v3", cameras=["corner2", "topview"], camera_size=32)
    observations = {key: task.spec.observations[key] for key in ("topview", "hand")}
    spec = type(task.spec)(**{**vars(task.spec), "observations": observations}).with_window(1, 5, 5)
    env = ChunkEnv(task, spec)
    seen, render = [], env.env._eyes.render
    env.env._eyes.render = lambda data, camera: (seen.append(camera), render(data, camera))[1]
    env.reset(seed=0)
    env.step(np.zeros((5, 4), np.float32))
    assert seen == ["topview", "topview"]
    env.close()


def test_camera_names_are_checked_before_a_simulator_starts():
    with pytest.raises(FlowleapError, match=r"no camera 'corner5'.*did you mean 'corner"):
        make_task("metaworld/reach-v3", cameras=["corner5"])


def test_without_a_backend_cameras_say_how_to_get_one_and_states_do_not_care(monkeypatch):
    def fail() -> str:
        raise FlowleapError("no OpenGL backend renders here; try `apt-get install libosmesa6`")

    monkeypatch.setattr(gl, "choose_gl", fail)
    with pytest.raises(FlowleapError, match="apt-get install libosmesa6"):
        make_task("metaworld/reach-v3", cameras=["corner2"]).make_env()
    make_task("metaworld/reach-v3").make_env().reset(seed=0)


@pytest.mark.usefixtures("renders")
def test_an_unknown_camera_is_named():
    with pytest.raises(FlowleapError, match=r"no camera 'front'.*corner"):
        make_task("metaworld/reach-v3", camera="front").make_env(render_mode="rgb_array")


def test_a_chosen_backend_that_fails_is_named(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    gl.choose_gl.cache_clear()
    with pytest.raises(FlowleapError, match=r"MUJOCO_GL=vulkan is not one of .* try `unset MUJOCO_GL`"):
        gl.choose_gl()


def test_no_backend_says_how_to_get_one(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "_BACKENDS", ("egl", "osmesa"))
    monkeypatch.setattr(gl, "_probe", lambda backend: f"{backend} is broken")
    gl.choose_gl.cache_clear()
    try:
        with pytest.raises(FlowleapError, match=r"egl is broken.*osmesa is broken.*apt-get install"):
            gl.choose_gl()
    finally:
        gl.choose_gl.cache_clear()


def test_mujoco_gl_is_the_only_candidate(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "warp")
    gl.probe_gl.cache_clear()
    try:
        assert list(gl.probe_gl()) == ["warp"]
        assert "not one of" in gl.probe_gl()["warp"]
    finally:
        gl.probe_gl.cache_clear()
