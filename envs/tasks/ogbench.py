"""OGBench: a UR5e arm moves cubes, presses the buttons of a puzzle, tidies a scene, towards a goal; low-dim state.

The manipulation environments of OGBench (arXiv 2410.20092), each with five goals, which the seed draws from. With
`-singletask` there is one goal, which is not observed. The demonstrations are those of the package's own scripted
oracles, led from one object to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import gymnasium
import numpy as np

from flowleap.envs.task import Observation, Task
from flowleap.envs.tasks.base import SimEnv, Start, Step, origin, without_gl
from flowleap.envs.tasks.ogbench_expert import OGBenchExpert
from flowleap.policy.core.errors import optional_import, require_int
from flowleap.policy.core.registry import Option
from flowleap.policy.core.spec import ObsKey, Spec

CONTROL_HZ = 20.0
ACTION_DIM = 5
GOALS = 5  # of every environment
_SINGLE = "-singletask"
_ARM = 19  # numbers of the arm in the state
_PACKAGES = ("ogbench", "dm_control", "mujoco", "gymnasium")


@dataclass(frozen=True)
class Scene:
    """Sizes of one environment: state, goal, and the time limit that the package registers."""

    state_dim: int
    goal_dim: int
    max_steps: int


def _cubes(n: int, max_steps: int) -> Scene:
    return Scene(_ARM + 9 * n, 3 * n, max_steps)


def _buttons(n: int, max_steps: int) -> Scene:
    return Scene(_ARM + 4 * n, n, max_steps)


SCENES = {
    "cube-single": _cubes(1, 200),
    "cube-double": _cubes(2, 500),
    "cube-triple": _cubes(3, 1000),
    "cube-quadruple": _cubes(4, 1000),
    "scene": Scene(_ARM + 9 + 4 * 2 + 4, 7, 750),
    "puzzle-3x3": _buttons(9, 500),
    "puzzle-4x4": _buttons(16, 500),
    "puzzle-4x5": _buttons(20, 1000),
    "puzzle-4x6": _buttons(24, 1000),
}
TASKS = (*SCENES, *(f"{name}{_SINGLE}" for name in SCENES))


class OGBenchEnv(SimEnv):
    """One environment of OGBench's manipulation suite, with the package's own rewards and success.

    Observation `state`, as the package scales it: joint positions and velocities (6 + 6), the gripper's position
    (3, times 10), cosine and sine of its yaw (2), its opening (times 3) and contact (2); of each cube position
    (3, times 10), quaternion (4), cosine and sine of its yaw (2); of each button one-hot state (2), position and
    velocity (2); of drawer and window position and velocity (2 + 2).
    `goal`, unless there is but one, the package's `oracle` representation: positions of the cubes (3 each), states of
    the buttons, positions of drawer and window.
    Action [5] in [-1, 1]: displacement of the gripper (5 cm), its turn (0.3 rad) and its opening.
    The episode terminates with `info["success"]`.

    `reset(seed=...)` depends on the seed alone, whatever was simulated before.
    """

    def __init__(
        self,
        name: str,
        task_id: int | None,
        camera: str = "front",
        image_size: int = 320,
        render_mode: str | None = None,
    ) -> None:
        with without_gl():
            optional_import("ogbench.manipspace.envs.manipspace_env", extra="ogbench")
        self.sim = _simulator(f"{name}-v0", task_id)
        self._single, self._task_id = name.endswith(_SINGLE), task_id
        super().__init__(_observations(name), ACTION_DIM, CONTROL_HZ, render_mode)
        self.sim.reset(seed=0, options={"task_id": 1})  # compiles the model
        self.film(camera, image_size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Draw the goal, the arm and small displacements of the objects."""
        super().reset(seed=seed)
        drawn, start = int(self.np_random.integers(1, GOALS + 1)), int(self.np_random.integers(2**31))
        self.sim.shaking.seed(start)
        if hasattr(
            self.sim, "_apply_button_states"
        ):  # locks of the last episode would act on the first forward pass
            self.sim._cur_button_states = np.zeros_like(self.sim._cur_button_states)
            self.sim._apply_button_states()
        obs, info = self.sim.reset(seed=start, options={"task_id": self._task_id or drawn})
        self._goal = info["goal"].astype(np.float32)
        return self._observe(obs), {"success": False}

    def step(self, action: np.ndarray) -> Step:
        """Move the gripper's target for 50 ms."""
        obs, reward, terminated, _, info = self.sim.step(np.clip(action, -1.0, 1.0))
        return self._observe(obs), float(reward), bool(terminated), False, {"success": bool(info["success"])}

    def _observe(self, obs: np.ndarray) -> Observation:
        state = {"state": obs.astype(np.float32)}
        return state if self._single else state | {"goal": self._goal}


def make(
    name: str,
    max_steps: int | None = None,
    camera: str = "front",
    image_size: int = 320,
    *,
    task_id: Annotated[
        int | None,
        Option("always this goal; null: drawn by the seed, with -singletask the package's default", 1, GOALS),
    ] = None,
) -> Task:
    """Build `ogbench/<name>`; `camera` and `image_size` (px) concern rendering only."""
    if task_id is not None:
        require_int("task_id", task_id, 1, GOALS)
    single = name.endswith(_SINGLE)
    scene = SCENES[name.removesuffix(_SINGLE)]
    limit = scene.max_steps if max_steps is None else max_steps
    told = {} if task_id is None else {"task_id": task_id}
    goal = "draws one of five goals," if not single and task_id is None else "draws"
    return Task(
        name=f"ogbench/{name}",
        make_env=partial(OGBenchEnv, name, task_id, camera, image_size),
        spec=Spec(
            observations=_observations(name),
            action_dim=ACTION_DIM,
            control_hz=CONTROL_HZ,
            action_convention="delta",
            source=origin(f"ogbench/{name}", f"{name}-v0", _PACKAGES, max_steps=limit, **told),
        ),
        max_steps=limit,
        seed_note=f"the seed {goal} the arm's pose and the cubes' within 1 cm; success is every cube within 4 cm of "
        f"its goal, every button, drawer and window as there, at any of {limit} steps, and ends the episode.",
        expert=partial(OGBenchExpert, name.partition("-")[0]),
    )


def _simulator(env_id: str, task_id: int | None) -> Any:
    """The environment as the package registers it, but for two things.

    Goals are observed as the package's `oracle` representation. A reset takes a few random steps, and those are drawn
    from a space that is made anew, without a seed, whenever it is asked for: here from one that is kept.
    """
    spec = gymnasium.spec(env_id)
    simulator: Any = gymnasium.envs.registration.load_env_creator(str(spec.entry_point))
    seeded: Any = type(simulator.__name__, (simulator,), {"action_space": property(lambda sim: sim.shaking)})
    kwargs: dict[str, Any] = {**spec.kwargs, "use_oracle_rep": True}
    if task_id is not None and "reward_task_id" in kwargs:
        kwargs["reward_task_id"] = task_id
    seeded.shaking = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
    return seeded(**kwargs)


def _observations(name: str) -> dict[str, ObsKey]:
    scene = SCENES[name.removesuffix(_SINGLE)]
    state = {"state": ObsKey((scene.state_dim,))}
    return state if name.endswith(_SINGLE) else state | {"goal": ObsKey((scene.goal_dim,))}
