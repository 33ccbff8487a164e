"""Push-T: geometry against gym-pusht's own, recorded states, seeding."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from flowleap.envs.pusht import PushTEnv, block_keypoints, coverage, mirror
from flowleap.envs.registry import make_task

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
    columns = {key: np.asarray(data[key][:])[rows] for key in task.recorded_keys}
    recorded = task.from_recorded(columns)
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
    columns = task.from_recorded(recorded)
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
