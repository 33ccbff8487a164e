"""Protocols: published initial states, what counts as success, contradictions, one protocol a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from flowleap.envs.protocols import (
    DIFFUSION_POLICY,
    DP3_ADROIT,
    DP3_METAWORLD,
    FLOWLEAP,
    PROTOCOLS,
    Protocol,
    find_protocol,
    one_protocol,
)
from flowleap.envs.registry import list_tasks, make_task
from flowleap.envs.rollout import rollout
from flowleap.envs.task import Task
from flowleap.envs.tasks.pusht import legacy_start
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec

WINDOW = (2, 16, 8)


@pytest.mark.parametrize(
    ("seed", "drawn", "block"),
    [
        (100000, (235, 124, 335, 128, -0.9049), (299.6129, 145.2016)),
        (100001, (365, 182, 275, 280, -1.0981), (234.9343, 304.5125)),
    ],
)
def test_push_t_starts_where_diffusion_policy_does(seed, drawn, block):
    """The states that the original environment draws, and where the block lies after its reset."""
    pytest.importorskip("gym_pusht")
    np.testing.assert_allclose(legacy_start(seed)["reset_to_state"], drawn, atol=5e-5)
    task = make_task("pusht/keypoints")
    spec = task.spec.with_window(*WINDOW)
    env = DIFFUSION_POLICY.apply(task, spec).make_env()
    obs, _ = env.reset(seed=seed)
    np.testing.assert_allclose(obs["agent_pos"], drawn[:2])
    np.testing.assert_allclose(env.unwrapped.state()[2:4], block, atol=5e-5)
    corners = obs["keypoints"].reshape(8, 2)
    np.testing.assert_allclose(corners[:2].mean(axis=0), block, atol=1e-3)  # the T's origin lies between them
    env.reset(seed=3)
    again, _ = env.reset(seed=seed)
    np.testing.assert_array_equal(again["keypoints"], obs["keypoints"])


def test_the_conditions_of_diffusion_policy():
    task = DIFFUSION_POLICY.apply(make_task("pusht/state"), make_task("pusht/state").spec)
    assert (task.max_steps, task.scoring.metric) == (300, "max_reward")
    assert DIFFUSION_POLICY.seeds(None, None) == range(100_000, 100_050)
    assert DIFFUSION_POLICY.seeds(100_000, 50) == range(100_000, 100_050)  # saying so is no contradiction
    for given in ((7, None), (None, 20)):
        with pytest.raises(
            FlowleapError, match=r"protocol=diffusion_policy allows no .*it says .*protocol=flowleap"
        ):
            DIFFUSION_POLICY.seeds(*given)
    described = DIFFUSION_POLICY.describe(task)
    assert described["name"] == "diffusion_policy"
    assert "RandomState" in described["starts"]
    assert DP3_METAWORLD.seeds(None, None) == range(100_000, 100_020)
    assert DP3_METAWORLD.seeds(5, 50) == range(5, 55)  # the published runner fixes no seeds
    for wrong in ((-1, None), (None, 0), ("a", None)):
        with pytest.raises(FlowleapError, match="must be a whole number"):
            FLOWLEAP.seeds(*wrong)


def test_an_episode_of_the_protocol_is_the_same_in_any_number_of_environments():
    pytest.importorskip("gym_pusht")
    plain = make_task("pusht/state")
    spec = plain.spec.with_window(*WINDOW)
    task = replace(DIFFUSION_POLICY.apply(plain, spec), max_steps=24)

    def actor(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        return (obs["block_position"][:, -1:] + 30 * noise[:, :8]).astype(np.float32)

    serial = rollout(task, actor, spec, range(100_000, 100_003))
    assert rollout(task, actor, spec, range(100_000, 100_003), n_envs=2).episodes == serial.episodes
    assert rollout(plain, actor, spec, [100_000]).episodes != serial.episodes[:1]  # another initial state


class Clock(gymnasium.Env):
    """Succeeds at given steps, and says so by ending."""

    def __init__(self, steps: tuple[int, ...], render_mode: str | None = None) -> None:
        self.observation_space = Dict({"t": Box(-np.inf, np.inf, (1,), np.float32)})
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.steps, self.t = steps, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return {"t": np.zeros(1, np.float32)}, {}

    def step(self, action: np.ndarray) -> Any:
        self.t += 1
        success = self.t in self.steps
        return (
            {"t": np.full(1, self.t, np.float32)},
            0.0,
            success,
            False,
            {"success": success, "hinge_rad": 0.1 * self.t},
        )


@pytest.mark.parametrize(
    ("protocol", "steps", "success", "length"),
    [
        (
            replace(DP3_METAWORLD, max_steps=11),
            (3, 4),
            True,
            3,
        ),  # chunks of 4: the last two steps are 3 and 4
        (replace(DP3_METAWORLD, max_steps=11), (1, 2, 5, 9), False, 11),
        (replace(DP3_METAWORLD, max_steps=11), (10,), True, 10),  # the last chunk is cut short: 10 and 11
        (replace(DP3_ADROIT, max_steps=11, succeeds=None), (10,), False, 11),
        (replace(DP3_ADROIT, max_steps=11, succeeds=None), (11,), True, 11),
        (replace(DP3_ADROIT, max_steps=15), (), True, 15),  # 1.5 rad at the end
        (replace(DP3_ADROIT, max_steps=13), (3, 13), False, 13),  # 1.3 rad: not beyond 1.4
        (FLOWLEAP, (2,), True, 2),
    ],
)
def test_the_steps_whose_success_counts(protocol: Protocol, steps, success, length):
    cloudpickle.loads(cloudpickle.dumps(protocol))  # it travels to workers
    spec = Spec({"t": ObsKey((1,))}, action_dim=1).with_window(1, 4, 4)

    def make_env(render_mode: str | None = None) -> Clock:
        return Clock(steps)

    task = protocol.apply(Task("test/clock", make_env, spec, 20, "none"), spec)

    def still(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        return np.zeros((1, 4, 1), np.float32)

    (episode,) = rollout(task, still, spec, [0]).episodes
    assert (episode.success, episode.length) == (success, length)


def test_finding_protocols():
    assert find_protocol("dp3", "metaworld/push-v3") is DP3_METAWORLD
    assert find_protocol("dp3", "adroit/door") is DP3_ADROIT
    for task in list_tasks():
        assert find_protocol("flowleap", task) is FLOWLEAP
    with pytest.raises(FlowleapError, match=r"unknown protocol 'dp4'.*did you mean 'dp3'"):
        find_protocol("dp4", "metaworld/push-v3")
    with pytest.raises(FlowleapError, match=r"dp3 is for metaworld/\*, adroit/door, not for pusht/state"):
        find_protocol("dp3", "pusht/state")
    assert all(protocol.about for protocol in PROTOCOLS)
    assert all(p.published and p.differs and p.demonstrations for p in PROTOCOLS if p is not FLOWLEAP)


def test_one_table_one_protocol():
    ours, published = {"protocol": {"name": "flowleap"}}, {"protocol": {"name": "dp3"}}
    assert one_protocol([published, published]) == "dp3"
    assert one_protocol([ours, {}]) == "flowleap"  # results of 0.1 name none
    with pytest.raises(FlowleapError, match="protocols dp3 and flowleap do not belong into one table"):
        one_protocol([ours, published])
