"""Push-T: geometry against gym-pusht's own, recorded states, seeding."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from flowleap.envs.chunk_env import ChunkEnv
from flowleap.envs.registry import make_task
from flowleap.envs.rollout import record_episode, rollout
from flowleap.envs.tasks.pusht import PushTEnv, block_keypoints, coverage, mirror

gym_pusht = pytest.importorskip("gym_pusht.envs.pusht")


def poses(count: int, spread: float) -> np.ndarray:
    """Block poses [count, 3] (px, px, rad) around the goal's."""
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(count, 3)) * (spread, spread, spread / 30)
    return np.array([256.0, 256.0, np.pi / 4]) + offsets


@pytest.mark.parametrize("spread", [3.0, 60.0])
def test_keypoints_and_coverage_equal_the_simulators(spread):
    reference = gym_pusht.PushTEnv(obs_type="environment_state_agent_pos")
    reference.reset(seed=0)
    for x, y, angle in poses(100, spread):
        reference.block.angle = angle
        reference.block.position = (x, y)
        expected = reference.get_obs()["environment_state"]
        np.testing.assert_allclose(block_keypoints(np.array([x, y]), np.array(angle)), expected, atol=1e-9)
        # PushTEnv replaces this method on its own instance only.
        assert coverage((x, y), angle) == pytest.approx(reference._get_coverage(), abs=1e-12)


def test_coverage_at_the_ends():
    assert coverage((256.0, 256.0), np.pi / 4) == pytest.approx(1.0)
    assert coverage((256.0, 256.0), np.pi / 4 + 2 * np.pi) == pytest.approx(1.0)
    assert coverage((60.0, 60.0), 0.0) == 0.0


def test_an_episode_equals_gym_pushts():
    """Same seed, same actions: the same start, rewards and end as in the published environment."""
    reference = gym_pusht.PushTEnv(obs_type="state")
    env = PushTEnv("state")
    expected, _ = reference.reset(seed=7)
    env.reset(seed=7)
    for target in np.random.default_rng(0).uniform(100, 400, (60, 2)):
        np.testing.assert_array_equal(env.state()[:4], expected[:4])
        expected, reward, terminated, _, info = reference.step(target)
        _, own_reward, own_terminated, _, own = env.step(target)
        assert own_reward == pytest.approx(reward, abs=1e-12)
        assert own["coverage"] == pytest.approx(info["coverage"], abs=1e-12)
        assert (own_terminated, own["success"]) == (terminated, info["is_success"])


def test_success_terminates():
    env = PushTEnv("state")
    env.reset_to_state(np.array([60.0, 60.0, 256.0, 256.0, np.pi / 4]))
    _, reward, terminated, _, info = env.step(np.array([60.0, 60.0]))
    assert (reward, terminated, info["success"]) == (1.0, True, True)


@pytest.mark.parametrize("name", ["pusht/state", "pusht/keypoints"])
def test_recorded_states_are_reached_and_seen_as_recorded(pusht_human, name):
    task = make_task(name)
    data = zarr.open_group(str(pusht_human), mode="r")["data"]
    rows = np.arange(0, 25650, 401)
    columns = {key: np.asarray(data[key][:])[rows] for key in task.recording.keys}
    recorded = task.recording.translate(columns)
    assert set(recorded) == {*task.spec.observations, "action"}
    env = task.make_env()
    for row, state in enumerate(columns["state"]):
        obs = env.reset_to_state(state)
        np.testing.assert_allclose(env.state(), state, atol=1e-4)
        for key in task.spec.observations:
            np.testing.assert_allclose(obs[key], recorded[key][row], atol=1e-3)
    np.testing.assert_array_equal(recorded["action"], columns["action"])


def test_recorded_actions_replay_as_recorded(pusht_human):
    """Ten steps from a recorded state with the recorded actions end where the recording does."""
    data = zarr.open_group(str(pusht_human), mode="r")["data"]
    states, actions = np.asarray(data["state"][:60]), np.asarray(data["action"][:60])
    env = PushTEnv("state")
    env.reset_to_state(states[0])
    for action in actions[:10]:
        env.step(action)
    np.testing.assert_allclose(env.state(), states[10], atol=2.0)


def test_observations_of_both_tasks_agree():
    state, keypoints = PushTEnv("state"), PushTEnv("keypoints")
    a, _ = state.reset(seed=3)
    b, _ = keypoints.reset(seed=3)
    angle = np.arctan2(a["block_angle"][1], a["block_angle"][0])
    np.testing.assert_allclose(block_keypoints(a["block_position"], angle), b["keypoints"], atol=1e-3)
    np.testing.assert_array_equal(a["agent_pos"], b["agent_pos"])


@pytest.mark.parametrize("name", ["state", "keypoints"])
def test_mirroring_twice_changes_nothing(name):
    task = make_task(f"pusht/{name}")
    rng = np.random.default_rng(1)
    recorded = {"state": rng.uniform(0, 512, (50, 5)), "action": rng.uniform(0, 512, (50, 2))}
    columns = task.recording.translate(recorded)
    mirrored = task.mirror(columns)
    for key, column in columns.items():
        assert mirrored[key].dtype == np.float32
        assert np.abs(mirrored[key] - column).max() > 0.1
        np.testing.assert_allclose(task.mirror(mirrored)[key], column, atol=1e-3)


def test_a_mirrored_episode_earns_what_the_recorded_one_earns(pusht_human):
    """The symmetry is one of the simulator: mirrored state, mirrored actions, equal coverage all along."""
    group = zarr.open_group(pusht_human, mode="r")
    end = int(np.asarray(group["meta/episode_ends"])[0])
    state = np.asarray(group["data/state"][:end], np.float64)
    action = np.asarray(group["data/action"][:end])
    mirrored = mirror({"action": action, "agent_pos": state[:, :2], "block_position": state[:, 2:4]})
    first = [*mirrored["agent_pos"][0], *mirrored["block_position"][0], np.pi / 2 - state[0, 4]]
    coverages = []
    for start, actions in ((state[0], action), (np.array(first), mirrored["action"])):
        env = PushTEnv("keypoints")
        seen = env.reset_to_state(start)
        coverages.append([env.step(a)[4]["coverage"] for a in actions])
    np.testing.assert_allclose(seen["keypoints"], mirror(keypoints_of(state[:1]))["keypoints"][0], atol=1e-2)
    assert max(coverages[0]) > 0.8
    np.testing.assert_allclose(coverages[0], coverages[1], atol=2e-3)


def keypoints_of(state: np.ndarray) -> dict[str, np.ndarray]:
    return {"keypoints": block_keypoints(state[:, 2:4], state[:, 4])}


def test_pixels_are_drawn_as_they_were_recorded(pusht_human):
    """Recorded images come back but for the rims of the drawing, which other versions of the libraries smooth apart."""
    task = make_task("pusht/pixels")
    data = zarr.open_group(str(pusht_human), mode="r")["data"]
    columns = {key: np.asarray(data[key][:161]) for key in task.recording.keys}
    recorded = task.recording.translate(columns)
    env = task.make_env()
    for row in range(0, 161, 20):
        obs = env.reset_to_state(columns["state"][row])
        assert obs["image"].dtype == np.uint8
        difference = np.abs(obs["image"].astype(float) - recorded["image"][row]).max(-1)
        assert (difference > 8).mean() < 0.01
        np.testing.assert_allclose(obs["agent_pos"], recorded["agent_pos"][row], atol=1e-3)
    shifted = np.abs(obs["image"].astype(float) - recorded["image"][0]).max(-1)
    assert (shifted > 8).mean() > 0.02  # the measure does see another state


def test_a_mirrored_image_shows_the_mirrored_state():
    """Up to the rims, where drawing is not symmetric to the pixel."""
    task = make_task("pusht/pixels")
    env = task.make_env()
    for state in poses(6, 60.0):
        state = np.array([130.0, 300.0, *state])
        obs = env.reset_to_state(state)
        seen = mirror({key: value[None] for key, value in obs.items()})
        other = env.reset_to_state(
            np.array([512 - 300.0, 512 - 130.0, *(512 - state[3:1:-1]), np.pi / 2 - state[4]])
        )
        assert seen["image"].dtype == np.uint8
        np.testing.assert_allclose(seen["agent_pos"][0], other["agent_pos"])
        difference = np.abs(seen["image"][0].astype(float) - other["image"]).max(-1)
        assert (difference > 60).mean() < 0.02
        unlike = np.abs(obs["image"].astype(float) - other["image"]).max(-1)
        assert (unlike > 60).mean() > 2 * (difference > 60).mean()


def count_drawings(env):
    """Count calls of the simulator's drawing."""
    drawn, draw = [], env.sim._render

    def counted(*args, **kwargs):
        drawn.append(kwargs)
        return draw(*args, **kwargs)

    env.sim._render = counted
    return drawn


@pytest.mark.parametrize(("n_obs_steps", "n_action_steps", "a_chunk"), [(1, 6, 1), (2, 6, 2), (3, 2, 2)])
def test_only_what_the_policy_sees_is_drawn(n_obs_steps, n_action_steps, a_chunk):
    task = make_task("pusht/pixels")
    spec = task.spec.with_window(n_obs_steps, 8, n_action_steps)
    env = ChunkEnv(task, spec)
    drawn = count_drawings(env.env)
    obs, _ = env.reset(seed=0)
    assert len(drawn) == 1
    for chunk in range(1, 4):
        obs, *_ = env.step(np.full((n_action_steps, 2), 100.0 + 50 * chunk, np.float32))
        assert len(drawn) == 1 + a_chunk * chunk
        assert obs["image"].shape == (n_obs_steps, 96, 96, 3)
        np.testing.assert_array_equal(obs["image"][-1], env.env.sim._render())
        drawn.pop()
    assert (obs["image"][0] != obs["image"][-1]).any() or n_obs_steps == 1


def test_nothing_is_drawn_for_a_policy_without_images():
    task = make_task("pusht/pixels")
    spec = task.spec.with_window(1, 4, 4)
    blind = type(spec)(**{**vars(spec), "observations": {"agent_pos": spec.observations["agent_pos"]}})
    env = ChunkEnv(task, blind)
    drawn = count_drawings(env.env)
    env.reset(seed=0)
    env.step(np.full((4, 2), 200.0, np.float32))
    assert not drawn


def test_a_video_shows_the_episode_that_was_evaluated_from_pixels():
    short = make_task("pusht/pixels")
    short = type(short)(**{**vars(short), "max_steps": 20})
    spec = short.spec.with_window(2, 8, 8)

    def actor(obs, noise):
        towards = obs["image"][:, -1].mean((1, 2)) + obs["agent_pos"][:, -1, :1]
        return (towards[:, None, :2] + 60 * noise).astype(np.float32)

    frames, record = record_episode(short, actor, spec, 11)
    assert frames.shape == (21, 384, 384, 3)
    assert record == rollout(short, actor, spec, [11, 12], n_envs=2).episodes[0]
