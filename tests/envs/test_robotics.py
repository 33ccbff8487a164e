"""Adroit and Fetch: seeds decide everything, physics is gymnasium-robotics', experts succeed, nothing is printed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from flowleap.envs.demonstrate import demonstrate
from flowleap.envs.registry import make_task
from flowleap.envs.report import episode_rows, format_line, summary
from flowleap.envs.rollout import rollout
from flowleap.envs.tasks import adroit
from flowleap.policy.core.versions import package_versions

pytest.importorskip("pettingzoo", reason="needs pip install 'flowleap[robotics]'")
pytest.importorskip("mujoco", reason="needs pip install 'flowleap[robotics]'")
if not package_versions("gymnasium-robotics")["gymnasium-robotics"]:
    pytest.skip("needs pip install 'flowleap[robotics]'", allow_module_level=True)

NAMES = [*(f"adroit/{name}" for name in adroit.TASKS), "fetch/push", "fetch/pick_and_place"]


def trajectory(env, seed: int, steps: int = 20) -> list[bytes]:
    """Observations and rewards of one episode of seeded random actions, bit for bit."""
    obs, _ = env.reset(seed=seed)
    seen = [obs[key].tobytes() for key in obs]
    for action in np.random.default_rng(seed).uniform(-0.5, 0.5, (steps, *env.action_space.shape)):
        obs, reward, *_ = env.step(action)
        seen += [*(obs[key].tobytes() for key in obs), np.float64(reward).tobytes()]
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_depends_on_its_seed_alone(name):
    task = make_task(name)
    used, fresh = task.make_env(), task.make_env()
    trajectory(used, 9, steps=60)
    first = trajectory(used, 3)
    assert first == trajectory(fresh, 3)
    assert first[:2] != trajectory(fresh, 4)[:2]


def test_the_door_is_gymnasium_robotics_own():
    env = make_task("adroit/door").make_env()
    reference = adroit.import_robotics("envs.adroit_hand.adroit_door").AdroitHandDoorEnv()
    obs, _ = env.reset(seed=3)
    expected, _ = reference.reset(seed=3)
    for action in np.random.default_rng(0).uniform(-0.5, 0.5, (20, 28)):
        np.testing.assert_array_equal(obs["state"], expected.astype(np.float32))
        obs, reward, terminated, _, info = env.step(action)
        expected, expected_reward, _, _, expected_info = reference.step(action)
        assert (reward, terminated) == (expected_reward, False)
        assert info["success"] == bool(expected_info["success"])


def test_the_hinge_decides_both_figures():
    env = make_task("adroit/door").make_env()
    for angle, opened, success in ((0.9, False, False), (1.1, True, False), (1.45, True, True)):
        qpos = np.zeros(30)
        qpos[28] = angle
        obs = env.reset_to_state(qpos, np.zeros(30), np.array([-0.25, 0.3, 0.3]))
        assert obs["state"][adroit.HINGE] == pytest.approx(angle)
        info = env.step(np.zeros(28))[-1]
        assert (info[adroit.OPEN], info["success"]) == (opened, success), info


def test_further_outcomes_are_reported_per_episode_and_in_sum():
    task = make_task("adroit/door", max_steps=4)
    spec = task.spec.with_window(1, 2, 2)
    result = rollout(task, lambda obs, noise: np.zeros((1, 2, 28)), spec, [0, 1], n_envs=2)
    assert [row["outcomes"] for row in episode_rows(result)] == [
        {adroit.OPEN: False, "success_over_25_steps": False}
    ] * 2
    report = summary(result, task)
    assert report["outcomes"][adroit.OPEN]["n"] == 2
    assert f"{adroit.OPEN} 0/2 = 0.000 [0.000," in format_line(report)


@pytest.mark.parametrize("name", ["fetch/push", "fetch/pick_and_place"])
def test_the_experts_succeed(name):
    task = make_task(name)
    env = task.make_env()
    attempts = [demonstrate(task, env, seed) for seed in range(20)]
    assert sum(attempt.success for attempt in attempts) >= 19
    actions = np.concatenate([attempt.columns["action"] for attempt in attempts])
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0
    assert set(attempts[0].columns) == {"state", "goal", "action"}


def test_noise_on_the_executed_action_is_corrected():
    task = make_task("fetch/pick_and_place")
    env = task.make_env()
    attempts = [demonstrate(task, env, seed, action_noise=0.2) for seed in range(10)]
    assert sum(attempt.success for attempt in attempts) >= 9


def test_importing_prints_nothing():
    code = "from flowleap.envs.registry import make_task; make_task('adroit/door').make_env().reset(seed=0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout + result.stderr == ""
