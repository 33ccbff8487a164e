"""Scripted demonstrators, and the noise that widens what they visit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from flowleap.envs.registry import Expert, optional_import


class MetaWorldExpert:
    """MetaWorld's scripted policy of one task."""

    def __init__(self, name: str, env: gymnasium.Env[Any, Any]) -> None:
        # Its gains exceed the action bounds on purpose, and it says so every time.
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
        policies = optional_import("metaworld.policies", extra="metaworld")
        self._env: Any = env
        self._policy = policies.ENV_POLICY_MAP[name]()

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [4], clipped to [-1, 1] as the environment would."""
        state = obs.get("state", self._env.state)  # cameras do not show it
        action = self._policy.get_action(state.astype(np.float64))
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def metaworld_expert(name: str, env: gymnasium.Env[Any, Any], seed: int) -> Expert:
    """Make the expert of `metaworld/<name>`; it needs no seed."""
    return MetaWorldExpert(name, env)


class LiftExpert:
    """Grasps robosuite's cube and lifts it: a function of the observation alone, so that it recovers from noise.

    Above the cube, fingers along its sides; down; close; up. Distances in m, angles in rad.
    """

    HOVER = 0.06  # height above the cube while the gripper is not above it yet
    ALIGNED = 0.012  # horizontal distance below which it goes down, and distance at which it closes
    HELD = 0.05  # opening of the fingers below which something as wide as the cube is between them
    STEP = 0.05  # displacement of the action 1
    TURN = 0.5  # rotation of the action 1

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [7]."""
        cube, cube_quat = obs["object"][:3], obs["object"][3:7]
        reach = cube - obs["robot0_eef_pos"]
        far = float(np.hypot(reach[0], reach[1]))
        opening = float(np.ptp(obs["robot0_gripper_qpos"]))
        close = np.linalg.norm(reach) < self.ALIGNED
        # The cube looks the same after a quarter turn: turn the short way.
        turn = _yaw(cube_quat) - _yaw(obs["robot0_eef_quat"])
        turn -= np.pi / 2 * np.round(turn / (np.pi / 2))
        if close and opening < self.HELD:
            move = np.array([0.0, 0.0, self.STEP])
        elif close:
            move = reach
        else:
            # A funnel over the cube: the lower, the better it has to be centred.
            height = self.HOVER * min(max(far / self.ALIGNED - 1.0, 0.0), 1.0)
            move = 2.0 * (reach + np.array([0.0, 0.0, height]))
        action = np.zeros(7, np.float32)
        action[:3] = move / self.STEP
        action[5] = 0.0 if close else turn / self.TURN
        action[6] = 1.0 if close else -1.0
        return np.clip(action, -1.0, 1.0)


def lift_expert(env: gymnasium.Env[Any, Any], seed: int) -> Expert:
    """Make the expert of `robosuite/lift`; it needs neither the simulator's inside nor a seed."""
    return LiftExpert()


def _yaw(quat: np.ndarray) -> float:
    """Angle about z of the x axis that a quaternion (xyzw) turns."""
    x, y, z, w = quat.astype(np.float64)
    return float(np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)))
