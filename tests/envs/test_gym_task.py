"""Registered gymnasium environments by id: spaces, return as the score, success where info has it, errors."""

from __future__ import annotations

import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from flowleap.envs.registry import list_tasks, make_task, open_families
from flowleap.envs.report import format_line, summary
from flowleap.envs.rollout import rollout
from flowleap.envs.tasks import gym_task
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey

_IMAGE = Box(0, 255, (16, 20, 3), np.uint8)


class Line(gymnasium.Env):
    """A point on a line that an action moves; reaching 1 is success, told at reset and in every step."""

    metadata = {"render_modes": [], "render_fps": 5}  # noqa: RUF012

    def __init__(self, observation="dict", action=None):
        self.observation_space = {
            "dict": Dict({"x": Box(-9, 9, (), np.float64), "image": _IMAGE}),
            "discrete": Discrete(3),
        }[observation]
        self.action_space = action or Box(-0.25, 0.25, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-0.1, 0.1)
        return self._obs(), {"is_success": False}

    def step(self, action):
        assert action.dtype == np.float64
        self.x += float(action[0])
        return self._obs(), self.x, self.x > 2.0, False, {"is_success": self.x > 1.0}

    def _obs(self):
        return {"x": np.float64(self.x), "image": np.full((16, 20, 3), 7, np.uint8)}


@pytest.fixture
def line():
    gymnasium.register("Line-v0", entry_point=Line, max_episode_steps=12)
    gymnasium.register("mine/Discrete-v0", entry_point=Line, kwargs={"observation": "discrete"})
    gymnasium.register("mine/Buttons-v0", entry_point=Line, kwargs={"action": Discrete(2)})
    gym_task._facts.cache_clear()
    yield
    for name in ("Line-v0", "mine/Discrete-v0", "mine/Buttons-v0"):
        del gymnasium.registry[name]


def test_pendulum():
    task = pickle.loads(pickle.dumps(make_task("gym/Pendulum-v1")))
    assert task.spec.observations == {"observations": ObsKey((3,))}
    assert (task.spec.action_dim, task.spec.control_hz, task.max_steps) == (1, pytest.approx(20), 200)
    assert (task.scoring.metric, task.scoring.reports_success) == ("sum_reward", False)
    spec = task.spec.with_window(1, 8, 8)
    result = rollout(task, lambda obs, noise: np.zeros((1, 8, 1)), spec, [3, 4])
    report = summary(result, task)
    reference = gymnasium.make("Pendulum-v1")
    for episode in result.episodes:
        reference.reset(seed=episode.seed)
        expected = sum(float(reference.step(np.zeros(1, np.float32))[1]) for _ in range(200))
        assert episode.sum_reward == pytest.approx(expected)
        assert episode.length == 200
    returns = [e.sum_reward for e in result.episodes]
    assert report["headline"]["value"] == report["sum_reward"]["mean"] == pytest.approx(np.mean(returns))
    text = format_line(report)
    assert f"gym/Pendulum-v1: mean return {np.mean(returns):.1f} [" in text
    assert "success" not in text
    assert "max reward" not in text


@pytest.mark.usefixtures("line")
def test_dict_observations_images_and_success():
    task = make_task("gym/Line-v0", max_steps=9)
    assert task.spec.observations == {
        "image": ObsKey((16, 20, 3), "uint8", "rgb"),
        "x": ObsKey((1,)),
    }
    assert (task.scoring.reports_success, task.max_steps) == (True, 9)
    assert make_task("gym/Line-v0").max_steps == 12
    env = task.make_env()
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    spec = task.spec.with_window(1, 3, 3)
    slow, fast = (
        rollout(task, lambda obs, noise, a=a: np.full((1, 3, 1), a), spec, [0]).episodes[0]
        for a in (0.05, 9.0)
    )
    assert (slow.success, slow.length) == (False, 9)
    assert (fast.success, fast.length) == (True, 8 if fast.max_reward <= 2.25 else 9)
    assert "success 1/1" in format_line(
        summary(rollout(task, lambda o, n: np.full((1, 3, 1), 9.0), spec, [0]), task)
    )


@pytest.mark.usefixtures("line")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym/Pendulum-v11", "knows no environment 'Pendulum-v11'; did you mean 'Pendulum-v1'"),
        ("gym/os:Pendulum-v1", "no id of a registered environment"),
        ("gym/CartPole-v1", "actions must be a Box of one axis of floats, not Discrete"),
        ("gym/mine/Buttons-v0", "actions must be a Box"),
        ("gym/mine/Discrete-v0", "observation 'observations' is a Discrete, only Box is read"),
        ("gym", "unknown task 'gym'"),
        ("gym/", "unknown task 'gym/'"),
    ],
)
def test_what_does_not_fit_is_named(name, message):
    with pytest.raises(FlowleapError, match=message):
        make_task(name)


def test_mujoco_environments_of_gymnasium_are_tasks():
    task = make_task("gym/HalfCheetah-v5")
    assert (task.spec.observations, task.spec.action_dim) == ({"observations": ObsKey((17,))}, 6)
    assert task.spec.control_hz == pytest.approx(20)
    env = task.make_env()
    first = env.reset(seed=1)[0]["observations"]
    assert np.array_equal(first, env.reset(seed=1)[0]["observations"])


def test_open_families_are_listed_apart():
    assert not any(name.startswith("gym/") for name in list_tasks())
    assert "gymnasium" in open_families()["gym/<EnvId>"]
