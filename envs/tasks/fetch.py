"""Fetch: an arm with a parallel gripper pushes, or picks and places, a block (gymnasium-robotics), low-dim state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from flowleap.envs.task import Expert, Observation, Task
from flowleap.envs.tasks.base import ROBOTICS, SimEnv, Start, Step, import_robotics, origin
from flowleap.policy.core.spec import ObsKey, Spec

TASKS = ("push", "pick_and_place")

CONTROL_HZ = 25.0
MAX_STEPS = 50  # the benchmark's
STEP = 0.05  # m, how far an action of 1 draws the gripper's target
_SIMULATORS = {
    "push": ("MujocoFetchPushEnv", "FetchPush-v4"),
    "pick_and_place": ("MujocoFetchPickAndPlaceEnv", "FetchPickAndPlace-v4"),
}
_CAMERA = "head_camera_rgb"
_OBSERVATIONS = {"state": ObsKey((25,)), "goal": ObsKey((3,))}

_SEED_NOTE = (
    "the seed draws block and goal; success is the block within 5 cm of the goal at any step, and ends the "
    f"episode (published tables: at the end of {MAX_STEPS} steps); some seeds begin there."
)


class FetchEnv(SimEnv):
    """FetchPush-v4 or FetchPickAndPlace-v4.

    Observation `state` [25]: gripper position (3, m), block position (3, m), block minus gripper (3, m), finger
    openings (2, m), block rotation (Euler, 3, rad), block velocity relative to the gripper's and angular velocity
    (3 + 3), gripper velocity (3), finger velocities (2); `goal` [3], m.
    Action [4] in [-1, 1]: displacement of the gripper's target in units of 5 cm, and the fingers' (1 opens them).
    Reward: 0 at the goal, else -1. The episode terminates with `info["success"]`.
    """

    def __init__(
        self, name: str, camera: str = _CAMERA, image_size: int = 320, render_mode: str | None = None
    ) -> None:
        self.sim = getattr(import_robotics(f"envs.fetch.{name}"), _SIMULATORS[name][0])()
        super().__init__(_OBSERVATIONS, 4, CONTROL_HZ, render_mode)
        self.film(camera, image_size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Draw block and goal."""
        super().reset(seed=seed)
        obs, _ = self.sim.reset(seed=seed)
        return _observation(obs), {"success": False}

    def step(self, action: np.ndarray) -> Step:
        """Move the gripper's target for 40 ms."""
        obs, reward, _, _, info = self.sim.step(np.asarray(action, np.float64))
        success = bool(info["is_success"])
        return _observation(obs), float(reward), success, False, {"success": success}

    def render(self) -> np.ndarray:
        """Return the camera's image, uint8 [image_size, image_size, 3]."""
        self.sim._render_callback()  # moves the goal's marker
        return super().render()


class PickAndPlaceExpert:
    """Comes from above, grasps, and carries the block to the goal: a function of the observation alone."""

    HOVER = 0.08  # m above the block, before it is aligned
    ALIGNED = 0.012  # m, horizontal distance from which the gripper goes down
    LEVEL = 0.012  # m, vertical distance from which the fingers close
    CLOSED = 0.056  # m between the fingers: the block is 0.05 wide

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [4]."""
        state, goal = obs["state"].astype(np.float64), obs["goal"].astype(np.float64)
        block, offset, gap = state[3:6], state[6:9], state[9] + state[10]
        aside = float(np.hypot(*offset[:2]))
        if aside < 2 * self.ALIGNED and abs(offset[2]) < 2 * self.LEVEL and gap < self.CLOSED:
            return _action(goal - block, -1.0)
        if aside < self.ALIGNED and abs(offset[2]) < self.LEVEL:
            return _action(offset, -1.0)
        height = 0.0 if aside < self.ALIGNED else self.HOVER
        return _action(offset + np.array([0.0, 0.0, height]), 1.0)


class PushExpert:
    """Goes behind the block, seen from the goal, and pushes it there: a function of the observation alone."""

    BEHIND = 0.075  # m between gripper and block before the push
    HOVER = 0.07  # m above the block on the way there
    LATERAL = 0.012  # m off the line of the push at which it stops to realign
    CONTACT = 0.045  # m between gripper and block in the push

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [4]; the fingers are blocked."""
        state, goal = obs["state"].astype(np.float64), obs["goal"].astype(np.float64)
        grip, block = state[:3], state[3:6]
        way = goal[:2] - block[:2]
        direction = way / max(float(np.hypot(*way)), 1e-6)
        relative = grip[:2] - block[:2]
        along = float(relative @ direction)
        lateral = relative - along * direction
        low = grip[2] - block[2] < 0.02
        if low and along < -0.5 * self.CONTACT and np.hypot(*lateral) < self.LATERAL:
            target = goal[:2] - self.CONTACT * direction
            return _action(np.array([*(target - grip[:2] - lateral), block[2] - grip[2]]), 0.0)
        behind = block[:2] - self.BEHIND * direction
        there = float(np.hypot(*(behind - grip[:2])))
        if there < self.LATERAL or (low and along < -0.5 * self.CONTACT):
            return _action(np.array([*(behind - grip[:2]), block[2] - grip[2]]), 0.0)
        climb = block[2] + self.HOVER - grip[2]
        ahead = behind - grip[:2] if climb < 0.03 else np.zeros(2)
        return _action(np.array([*ahead, climb]), 0.0)


def fetch_expert(name: str, env: gymnasium.Env[Any, Any], seed: int) -> Expert:
    """Make the expert of `fetch/<name>`; it needs neither the simulator's inside nor a seed."""
    return PushExpert() if name == "push" else PickAndPlaceExpert()


def make(name: str, max_steps: int = MAX_STEPS, camera: str = _CAMERA, image_size: int = 320) -> Task:
    """Build `fetch/<name>`; `camera` and `image_size` (px) concern rendering only."""
    return Task(
        name=f"fetch/{name}",
        make_env=partial(FetchEnv, name, camera, image_size),
        spec=Spec(
            observations=_OBSERVATIONS,
            action_dim=4,
            control_hz=CONTROL_HZ,
            action_convention="delta",
            source=origin(f"fetch/{name}", _SIMULATORS[name][1], ROBOTICS, max_steps=max_steps),
        ),
        max_steps=max_steps,
        seed_note=_SEED_NOTE,
        expert=partial(fetch_expert, name),
    )


def _action(displacement: np.ndarray, fingers: float) -> np.ndarray:
    """The action [4] that covers `displacement` [3] (m) as fast as the bounds allow."""
    return np.clip([*(displacement / STEP), fingers], -1.0, 1.0).astype(np.float32)


def _observation(obs: Mapping[str, np.ndarray]) -> Observation:
    return {"state": obs["observation"].astype(np.float32), "goal": obs["desired_goal"].astype(np.float32)}
