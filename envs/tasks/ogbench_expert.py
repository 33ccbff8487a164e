"""The expert of OGBench's manipulation tasks: a planner says what comes next, the package's oracles do it.

The oracles move one object: a cube, a button, the drawer, the window. Which one, and where to, follows from where
things are and from the goal: cubes that are in the way go first, a puzzle is solved over the integers modulo 2, what
is locked is unlocked.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from flowleap.envs.tasks.base import numpy_seed

PLACED = 0.03  # m; success asks for 0.04
ARRIVED = 0.02  # m, where the oracles let go of a cube
NEAR = 0.05  # m between centres, below which cubes of 4 cm, or a cube and a place, are in each other's way
ABOVE = 0.03  # m between centres, below which cubes stand on each other
OPENED = -0.14  # m, the drawer's position from which a cube can be put in
OPEN, IN_DRAWER = -0.16, np.array([0.33, -0.24, 0.066])  # m, the open drawer, and where a cube goes then
PATIENCE = 120  # steps for one object, after which the plan is made again
RAISED = {
    "cube": 0.16,
    "button": 0.16,
    "drawer": 0.18,
    "window": 0.28,
}  # m, where the oracles have let go and are up


@dataclass(frozen=True)
class Move:
    """What to do next: `kind` is `cube`, `button`, `drawer` or `window`.

    Attributes:
        index: of the cube or button.
        to: the cube's place [3] (m), the button's state, the slide's position (m).
    """

    kind: str
    index: int
    to: Any


class OGBenchExpert:
    """Plans from the simulator's state, again after every object."""

    def __init__(self, family: str, env: gymnasium.Env[Any, Any], seed: int) -> None:
        unwrapped: Any = env.unwrapped
        self._sim, self._family, self._seed = unwrapped.sim, family, seed
        self._move: Move | None = None
        self._oracle: Any = None
        self._steps = 0

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [5]."""
        info = self._sim.compute_ob_info()
        move = self._move
        if move is None or self._steps >= PATIENCE or _over(move, info):
            move = _PLANS[self._family](self._sim, info) or move
            assert move is not None  # no episode of the package begins at its goal
            self._begin(move, info)
        self._steps += 1
        action = self._oracle.select_action(None, {**info, **_told(self._sim, move, info)})
        return np.asarray(action, np.float32)

    def _begin(self, move: Move, info: Mapping[str, Any]) -> None:
        module = importlib.import_module(f"ogbench.manipspace.oracles.markov.{move.kind}_markov")
        options = {"gripper_always_closed": True} if self._family == "puzzle" else {}
        self._oracle = getattr(module, f"{move.kind.capitalize()}MarkovOracle")(env=self._sim, **options)
        with numpy_seed(self._seed % 2**32):
            self._oracle.reset(None, info)
        self._move, self._steps = move, 0


def _over(move: Move, info: Mapping[str, Any]) -> bool:
    """Whether the object is where it should be, and the gripper up and away."""
    if info["proprio/effector_pos"][2] <= RAISED[move.kind]:
        return False
    if move.kind == "cube":
        there = np.linalg.norm(info[f"privileged/block_{move.index}_pos"] - move.to) <= ARRIVED
        return bool(there and info["proprio/gripper_contact"] < 0.1)
    if move.kind == "button":
        return bool(info[f"privileged/button_{move.index}_state"] == move.to)
    return bool(abs(info[f"privileged/{move.kind}_pos"][0] - move.to) <= 0.01)


def _told(sim: Any, move: Move, info: Mapping[str, Any]) -> dict[str, Any]:
    """What an oracle is told of its target, as the package's environments do when they collect data."""
    if move.kind == "cube":
        place = {"target_block_pos": move.to, "target_block_yaw": np.zeros(1)}
        told = {"target_block": move.index, **place}
    elif move.kind == "button":
        top = sim.data.site_xpos[sim._button_site_ids[move.index]].copy()
        told = {"target_button": move.index, "target_button_state": move.to, "target_button_top_pos": top}
    else:
        axis = sim.data.joint(f"{move.kind}_slide").xaxis
        way = axis * (move.to - info[f"privileged/{move.kind}_pos"][0])
        told = {f"target_{move.kind}_handle_pos": info[f"privileged/{move.kind}_handle_pos"] + way}
    return {f"privileged/{key}": value for key, value in told.items()}


def plan_cubes(places: NDArray, goals: NDArray, free: NDArray) -> Move | None:
    """The next cube and where to put it; None where all are placed.

    Args:
        places, goals: [n, 3], m.
        free: [k, 3], places on the table for a cube that is in the way.
    """
    placed = np.linalg.norm(places - goals, axis=1) <= PLACED
    across = np.linalg.norm(places[:, None, :2] - places[None, :, :2], axis=-1)
    covered = [
        bool(np.any((across[i] < ABOVE) & (places[:, 2] > places[i, 2] + PLACED))) for i in range(len(places))
    ]
    movable = [i for i in range(len(places)) if not placed[i] and not covered[i]]
    for i in sorted(movable, key=lambda i: goals[i, 2]):
        others = np.arange(len(places)) != i
        supports = (
            others
            & (np.linalg.norm(goals[:, :2] - goals[i, :2], axis=1) < ABOVE)
            & (goals[:, 2] < goals[i, 2])
        )
        in_the_way = (
            others & ~(supports & placed) & (np.linalg.norm(places[:, :2] - goals[i, :2], axis=1) < NEAR)
        )
        if placed[supports].all() and not in_the_way.any():
            return Move("cube", i, goals[i])
    if not movable:
        return None
    taken = np.concatenate([places, goals])[:, :2]
    room = np.linalg.norm(free[:, None, :2] - taken[None], axis=-1).min(1)
    in_a_way = [i for i in movable if np.any(np.linalg.norm(goals - places[i], axis=1) < NEAR)]
    return Move("cube", (in_a_way or movable)[0], free[int(room.argmax())])


def presses(states: NDArray, goals: NDArray, rows: int, columns: int) -> NDArray:
    """The fewest buttons [n] (bool) to press, each once, that turn 0-1 `states` [n] into `goals` [n].

    A button flips itself and its neighbours across, below, left and right: a linear system over the integers modulo 2.
    """
    n = rows * columns
    place = np.stack(np.divmod(np.arange(n), columns), 1)
    flips = np.abs(place[:, None] - place[None]).sum(-1) <= 1
    system = np.concatenate([flips, ((states + goals) % 2 == 1)[:, None]], 1)
    pivots: list[int] = []
    for column in range(n):
        below = np.flatnonzero(system[len(pivots) :, column])
        if not below.size:
            continue
        row = len(pivots)
        system[[row, row + below[0]]] = system[[row + below[0], row]]
        clear = system[:, column].copy()
        clear[row] = False
        system[clear] ^= system[row]
        pivots.append(column)
    free = [column for column in range(n) if column not in pivots]
    solutions = []
    for choice in product([False, True], repeat=len(free)):
        solution = np.zeros(n, bool)
        solution[free] = choice
        chosen = system[: len(pivots), free] & np.array(choice, bool)
        solution[pivots] = system[: len(pivots), n] ^ np.logical_xor.reduce(chosen, axis=1)
        solutions.append(solution)
    return min(solutions, key=lambda solution: int(solution.sum()))


def _cube(sim: Any, info: Mapping[str, Any]) -> Move | None:
    places = np.stack([info[f"privileged/block_{i}_pos"] for i in range(sim._num_cubes)])
    goals = sim.data.mocap_pos[sim._cube_target_mocap_ids]
    low, high = sim._object_sampling_bounds
    grid = [(x, y, 0.02) for x in np.linspace(low[0], high[0], 6) for y in np.linspace(low[1], high[1], 13)]
    return plan_cubes(places, goals, np.array(grid))


def _puzzle(sim: Any, info: Mapping[str, Any]) -> Move | None:
    states, goals = np.asarray(sim._cur_button_states), np.asarray(sim._target_button_states)
    pressed = presses(states, goals, sim._num_rows, sim._num_cols)
    if not pressed.any():
        return None
    away = sim.data.site_xpos[sim._button_site_ids][:, :2] - info["proprio/effector_pos"][:2]
    nearest = int(np.where(pressed, np.linalg.norm(away, axis=1), np.inf).argmin())
    return Move("button", nearest, 1 - states[nearest])


def _scene(sim: Any, info: Mapping[str, Any]) -> Move | None:
    place, goal = info["privileged/block_0_pos"], sim.data.mocap_pos[sim._cube_target_mocap_ids[0]]
    drawer, window = float(info["privileged/drawer_pos"][0]), float(info["privileged/window_pos"][0])
    buttons, wanted = sim._cur_button_states, sim._target_button_states
    misplaced = np.linalg.norm(place - goal) > PLACED
    put_in = goal[1] < sim._object_sampling_bounds[0][1] - NEAR  # beyond the table: in the drawer
    if misplaced and put_in and not sim._is_in_drawer(place):
        move = Move("cube", 0, IN_DRAWER) if drawer < OPENED else Move("drawer", 0, OPEN)
    elif abs(drawer - sim._target_drawer_pos) > PLACED:
        move = Move("drawer", 0, sim._target_drawer_pos)
    elif abs(window - sim._target_window_pos) > PLACED:
        move = Move("window", 0, sim._target_window_pos)
    elif misplaced and not put_in:
        move = Move("cube", 0, goal.copy())
    else:
        wrong = np.flatnonzero(buttons != wanted)
        return Move("button", int(wrong[0]), int(wanted[wrong[0]])) if wrong.size else None
    lock = {"drawer": 0, "window": 1}.get(move.kind)
    if lock is not None and buttons[lock] == 0:
        return Move("button", lock, 1)
    return move


_PLANS = {"cube": _cube, "puzzle": _puzzle, "scene": _scene}
