"""Perturbations: their statistics, that the seed alone decides them, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from flowleap.envs.perturb import (
    KINDS,
    Perturbation,
    ScaledPhysics,
    available,
    perturbed_signals,
    perturbed_world,
)
from flowleap.envs.registry import make_task
from flowleap.envs.rollout import rollout
from flowleap.envs.task import Task
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec

KEYS = {"x": ObsKey((2,)), "eye": ObsKey((8, 8, 3), "uint8", "rgb")}


class Counter(gymnasium.Env):
    """Shows how many steps were taken, and keeps the actions."""

    def __init__(self, render_mode: str | None = None) -> None:
        eye = Box(0, 255, (8, 8, 3), np.uint8)
        self.observation_space = Dict({"x": Box(-np.inf, np.inf, (2,), np.float32), "eye": eye})
        self.action_space = Box(-9.0, 9.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.t, self.actions = 0, []
        return self.look(), {"success": False}

    def look(self) -> dict[str, np.ndarray]:
        return {"x": np.full(2, self.t, np.float32), "eye": np.full((8, 8, 3), 250, np.uint8)}

    def step(self, action: np.ndarray) -> Any:
        self.t += 1
        self.actions.append(float(action[0]))
        return self.look(), 0.0, False, False, {"success": False}


SPEC = Spec(KEYS, action_dim=1)
TASK = Task("test/counter", Counter, SPEC, 50, "nothing")


def range_of(key: str) -> tuple[np.ndarray, np.ndarray]:
    """The first dimension went over 4 units in training, the second not at all."""
    assert key == "x"
    return np.array([0.5, 1.0]), np.zeros(2)


def made(task: Task = TASK, spec: Spec = SPEC, **options: Any) -> gymnasium.Env:
    return perturbed_signals(task, spec, Perturbation(**options), range_of).make_env()


def frames(env: gymnasium.Env, seed: int, steps: int = 2000) -> dict[str, np.ndarray]:
    seen = [env.reset(seed=seed)[0], *(env.step(np.zeros(1, np.float32))[0] for _ in range(steps))]
    return {key: np.stack([frame[key] for frame in seen]) for key in seen[0]}


def test_noise_has_the_deviation_asked_for():
    seen = frames(made(obs_noise=0.1), 3)
    error = seen["x"] - np.arange(2001)[:, None]
    assert error[:, 0].std() == pytest.approx(0.1 * 2.0, rel=0.05)  # half of the range of 4
    assert abs(error[:, 0].mean()) < 0.02
    assert np.abs(np.corrcoef(error[:-1, 0], error[1:, 0])[0, 1]) < 0.08  # new at each frame
    assert (error[:, 1] == 0).all()  # what never varied has no unit
    assert seen["eye"].dtype == np.uint8
    assert seen["eye"].max() == 255  # not wrapped round
    assert seen["eye"].min() > 150
    assert seen["eye"].std() > 5


def test_the_seed_alone_decides():
    env = made(obs_noise=0.1, drop=0.3)
    first = frames(env, 3, 60)
    frames(env, 4, 7)
    for key, values in frames(env, 3, 60).items():
        np.testing.assert_array_equal(values, first[key])
    assert (frames(env, 4, 60)["x"] != first["x"]).any()


def test_lost_observations_are_the_last_that_arrived():
    shown = frames(made(drop=0.4), 0)["x"][:, 0]
    lost = shown[1:] != np.arange(1, 2001)
    assert lost.mean() == pytest.approx(0.4, abs=0.04)
    assert shown[0] == 0  # the first arrives
    assert (shown[1:][lost] == shown[:-1][lost]).all()
    assert (
        np.correlate(lost - lost.mean(), lost - lost.mean(), "full")[2000] / lost.size
    ) < 0.02  # each by itself
    assert (frames(made(drop=1.0), 0, 9)["x"] == 0).all()


@pytest.mark.parametrize(("convention", "held"), [("absolute", 1.0), ("delta", 0.0)])
def test_late_actions(convention, held):
    env = made(replace(TASK, spec=replace(SPEC, action_convention=convention)), action_delay=2)
    for _ in range(2):  # nothing is left over from the episode before
        env.reset(seed=0)
        for action in (1.0, 2.0, 3.0, 4.0):
            env.step(np.float32([action]))
        assert env.unwrapped.actions == [held, held, 1.0, 2.0]


def test_shifted_starts():
    task = make_task("probe/slalom")
    plain, shifted = task.make_env(), perturbed_world(task, Perturbation(start_noise=0.5)).make_env()
    moved = []
    for seed in range(200):
        before, after = plain.reset(seed=seed)[0], shifted.reset(seed=seed)[0]
        moved.append(np.concatenate([after[key] - before[key] for key in ("position", "goal")]))
    assert np.std(moved) == pytest.approx(0.5 * 0.02, rel=0.1)  # m
    np.testing.assert_array_equal(shifted.reset(seed=7)[0]["goal"], shifted.reset(seed=7)[0]["goal"])
    with pytest.raises(
        FlowleapError, match="start_noise: the initial states of task metaworld/push-v3 cannot"
    ):
        perturbed_world(make_task("metaworld/push-v3"), Perturbation(start_noise=0.5))


def test_shifted_starts_of_push_t_stay_on_the_board():
    pytest.importorskip("gym_pusht")
    task = make_task("pusht/state")
    env = perturbed_world(task, Perturbation(start_noise=1.0)).make_env()
    obs = [env.reset(seed=seed)[0] for seed in range(40)]
    block = np.array([frame["block_position"] for frame in obs])
    finger = np.array([frame["agent_pos"] for frame in obs])
    assert ((block >= 100) & (block <= 400)).all()
    assert ((finger >= 50) & (finger <= 450)).all()
    assert block.std(axis=0).min() > 50
    assert available(task) == ["obs_noise", "drop", "action_delay", "start_noise"]
    with pytest.raises(FlowleapError, match="task pusht/state is not simulated by MuJoCo"):
        perturbed_world(task, Perturbation(mass=2)).make_env()


def test_scaled_physics_of_a_servo():
    """Twice the mass: half the acceleration of the effector under the same force; resets see the world as it was."""
    task = make_task("probe/slalom")
    heavy = perturbed_world(task, Perturbation(mass=2.0, friction=3.0)).make_env()
    for _ in range(2):  # it does not scale what is scaled already
        heavy.reset(seed=0)
        model, plain = heavy.unwrapped.physics(), task.make_env().physics()
        np.testing.assert_allclose(model.body_mass, 2 * plain.body_mass)
        np.testing.assert_allclose(model.body_inertia, 2 * plain.body_inertia)
        np.testing.assert_allclose(model.geom_friction, 3 * plain.geom_friction)
        np.testing.assert_allclose(model.dof_invweight0, plain.dof_invweight0 / 2)
    speeds = []
    for env in (task.make_env(), heavy):
        env.reset(seed=0)
        bare = env.unwrapped
        bare.data.ctrl[:] = bare.data.qpos + np.array([0.1, 0.0])
        bare._mujoco.mj_forward(bare.model, bare.data)
        speeds.append(bare.data.qacc[0])
    assert speeds[1] == pytest.approx(speeds[0] / 2)
    assert speeds[0] > 1


def test_derived_numbers_are_those_that_mujoco_would_set():
    """mj_setConst on the scaled model gives the same inverse weights, where there is no armature."""
    mujoco = pytest.importorskip("mujoco")
    xml = """<mujoco><worldbody><body><freejoint/><geom size=".1" mass="1"/><body pos=".3 0 0">
      <joint axis="0 1 0"/><geom type="box" size=".1 .05 .02" mass=".4"/></body></body></worldbody></mujoco>"""

    class Falling(gymnasium.Env):
        def __init__(self, render_mode: str | None = None) -> None:
            self.model = mujoco.MjModel.from_xml_string(xml)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
            return {}, {}

    env = ScaledPhysics(Falling, "test/falling", 1.0, 2.5)
    env.reset(seed=0)
    model, data = env.unwrapped.model, mujoco.MjData(env.unwrapped.model)
    names = ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0")
    scaled = {name: getattr(model, name).copy() for name in names}
    mujoco.mj_setConst(model, data)
    for name in names:
        np.testing.assert_allclose(scaled[name], getattr(model, name), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["metaworld/drawer-open-v3", "adroit/door", "fetch/push"])
def test_physics_of_the_simulators(name):
    """Frictions and masses change what happens after a reset, not the reset; the same seed, the same episode."""
    pytest.importorskip({"metaworld": "metaworld"}.get(name.partition("/")[0], "gymnasium_robotics"))
    task = make_task(name)
    assert {"friction", "mass"} <= set(available(task))
    plain = task.make_env()
    scaled = perturbed_world(task, Perturbation(mass=3.0, friction=0.2)).make_env()
    push = np.full(task.spec.action_dim, 0.7, np.float32)

    def run(env: gymnasium.Env) -> list[np.ndarray]:
        seen = [env.reset(seed=5)[0]["state"]]
        return [*seen, *(env.step(push)[0]["state"] for _ in range(15))]

    first, others = run(plain), [run(scaled), run(scaled)]
    np.testing.assert_array_equal(*others)
    np.testing.assert_array_equal(first[0], others[0][0])
    assert np.abs(first[-1] - others[0][-1]).max() > 1e-5


def test_outcomes_do_not_depend_on_the_number_of_environments():
    plain = make_task("probe/slalom")
    spec = plain.spec.with_window(2, 8, 4)
    options = Perturbation(obs_noise=0.02, drop=0.2, action_delay=1, start_noise=0.5, mass=1.5, friction=0.5)
    ranges = (np.full(2, 4.0), np.zeros(2))
    task = perturbed_signals(perturbed_world(plain, options), spec, options, lambda key: ranges)

    def actor(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        ahead = np.linspace(0.02, 0.08, 4)[None, :, None] * np.array([0.0, 1.0])
        return (obs["position"][:, -1:] + ahead + 0.05 * noise[:, :4]).astype(np.float32)

    serial = rollout(task, actor, spec, [3, 1, 2])
    assert rollout(task, actor, spec, [3, 1, 2], n_envs=2).episodes == serial.episodes
    assert rollout(plain, actor, spec, [3, 1, 2]).episodes != serial.episodes


def test_what_is_refused():
    with pytest.raises(FlowleapError, match=r"no range of 'x'.*normalizer.obs=identity"):
        perturbed_signals(TASK, SPEC, Perturbation(obs_noise=0.1), lambda key: None)
    assert Perturbation().changed() == {}
    assert Perturbation(mass=2.0).changed() == {"mass": 2.0}
    assert available(TASK) == ["obs_noise", "drop", "action_delay"]
    assert all(kind.option.help for kind in KINDS.values())
