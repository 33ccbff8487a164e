"""OGBench: seeds decide everything, physics and success are the package's, the expert solves what it should."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from flowleap.envs.demonstrate import demonstrate
from flowleap.envs.registry import make_task
from flowleap.envs.tasks.ogbench_expert import plan_cubes, presses
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.versions import package_versions

INSTALLED = bool(package_versions("ogbench")["ogbench"])
needs_ogbench = pytest.mark.skipif(not INSTALLED, reason="needs pip install 'flowleap[ogbench]'")
FREE = np.array([[x, y, 0.02] for x in (0.3, 0.5) for y in (-0.3, 0.0, 0.3)])


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (4, 4), (4, 5), (4, 6)])
def test_a_puzzle_is_solved_by_the_fewest_presses(rows, columns):
    """Pressed one by one, the buttons bring about the goal; a random set of presses is never shorter."""
    rng = np.random.default_rng(rows * columns)
    for _ in range(5):
        start, chosen = rng.integers(0, 2, rows * columns), rng.random(rows * columns) < 0.4
        goal = pressed(start, chosen, rows, columns)
        found = presses(start, goal, rows, columns)
        np.testing.assert_array_equal(pressed(start, found, rows, columns), goal)
        assert found.sum() <= chosen.sum()
    assert not presses(goal, goal, rows, columns).any()


def pressed(states, buttons, rows, columns):
    """Flip every chosen button and its neighbours, one button after the other."""
    board = np.array(states).reshape(rows, columns)
    for row, column in zip(*np.nonzero(np.reshape(buttons, (rows, columns))), strict=True):
        for r, c in (
            (row, column),
            (row + 1, column),
            (row - 1, column),
            (row, column + 1),
            (row, column - 1),
        ):
            if 0 <= r < rows and 0 <= c < columns:
                board[r, c] ^= 1
    return board.ravel()


def run_plan(places, goals) -> list[int]:
    """Do what the plan says, as if every move worked; return the cubes in the order in which they are moved."""
    places, goals, order = np.array(places, float), np.array(goals, float), []
    while (move := plan_cubes(places, goals, FREE)) is not None:
        under = np.linalg.norm(places[:, :2] - places[move.index, :2], axis=1) < 0.03
        assert places[under, 2].max() == places[move.index, 2], "a cube stands on it"
        gaps = np.linalg.norm(np.delete(places, move.index, 0) - move.to, axis=1)
        assert gaps.min(initial=1.0) > 0.035, "two cubes in one place"
        places[move.index] = move.to
        order.append(move.index)
        assert len(order) < 12
    np.testing.assert_allclose(places, goals, atol=0.03)
    return order


def test_cubes_are_moved_in_an_order_that_works():
    a, b, c = [0.425, -0.1, 0.02], [0.425, 0.1, 0.02], [0.35, 0.2, 0.02]
    assert run_plan([a], [b]) == [0]
    assert run_plan([a], [a]) == []
    assert run_plan([a, b], [b, a]) == [0, 1, 0]  # a swap needs a third place
    assert run_plan([a, b, c], [b, c, a]) == [0, 2, 1, 0]
    assert run_plan([a, b], [[*c[:2], 0.06], c]) == [1, 0]  # the lower one of a stack first
    assert run_plan([c, [*c[:2], 0.06]], [a, b]) == [1, 0]  # the upper one of a stack first
    assert run_plan([c, [*c[:2], 0.06]], [[*c[:2], 0.06], c]) == [1, 0, 1, 0]  # a stack turned over


def test_goals_are_five():
    with pytest.raises(FlowleapError, match="task_id must be a whole number in"):
        make_task("ogbench/cube-single", task_id=6)


def trajectory(env, seed: int, steps: int = 6) -> list[bytes]:
    """Observations and rewards of one episode of seeded random actions, bit for bit."""
    obs, _ = env.reset(seed=seed)
    seen = [obs[key].tobytes() for key in obs]
    for action in np.random.default_rng(seed).uniform(-1, 1, (steps, 5)):
        obs, reward, *_ = env.step(action)
        seen += [*(obs[key].tobytes() for key in obs), np.float64(reward).tobytes()]
    return seen


@needs_ogbench
@pytest.mark.parametrize("name", ["cube-double", "scene", "puzzle-3x3-singletask"])
def test_an_episode_depends_on_its_seed_alone(name):
    task = make_task(f"ogbench/{name}")
    used, fresh = task.make_env(), task.make_env()
    trajectory(used, 9, steps=30)
    first = trajectory(used, 3)
    assert first == trajectory(fresh, 3)
    assert first[:1] != trajectory(fresh, 4)[:1]


@needs_ogbench
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
def test_physics_and_success_are_those_of_the_package():
    """From the same state, the same actions lead to the same observations and rewards in both."""
    env = make_task("ogbench/cube-double-singletask").make_env()
    env.reset(seed=1)
    reference = gymnasium.make("cube-double-singletask-v0", disable_env_checker=True).unwrapped
    reference.reset(seed=1, options={})
    for sim in (reference, env.sim):
        sim.set_state(np.array(env.sim.data.qpos), np.zeros(env.sim.model.nv))
        sim.data.ctrl[:], sim.data.qacc_warmstart[:] = env.sim.data.ctrl, 0
        sim.pre_step()
    for action in np.random.default_rng(0).uniform(-1, 1, (10, 5)):
        expected, expected_reward, terminated, _, expected_info = reference.step(action)
        obs, reward, ended, _, info = env.step(action)
        np.testing.assert_allclose(obs["state"], expected, atol=1e-4)
        assert (reward, ended, info["success"]) == (expected_reward, terminated, expected_info["success"])


@needs_ogbench
@pytest.mark.parametrize(
    ("name", "task_id"),
    [("cube-single", 4), ("cube-double", 4), ("cube-double", 5), ("scene", 4), ("puzzle-3x3", 2)],
)
def test_the_expert_succeeds(name, task_id):
    """A cube, a swap, a stack, a cube put into a locked drawer, a puzzle."""
    task = make_task(f"ogbench/{name}", task_id=task_id)
    attempt = demonstrate(task, task.make_env(), seed=0, hold_steps=5)
    assert attempt.success
    assert set(attempt.columns) == {"state", "goal", "action"}
    assert np.abs(attempt.columns["action"]).max() <= 1.0
