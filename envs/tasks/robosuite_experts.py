"""Scripted experts of robosuite's tasks: functions of the observation alone, so that they recover from noise.

All of them come from above, fingers open, into a funnel that narrows towards the thing, close, and carry it. Distances
in m, angles in rad; observations and actions are those of `robosuite.RobosuiteEnv`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from flowleap.envs.task import Expert

STEP = 0.05  # displacement of the action 1
TURN = 0.5  # rotation of the action 1


class Picking(ABC):
    """How the gripper gets hold of a thing; what is done with it then is a subclass's `carry`."""

    HOVER = 0.06  # height over the thing while the gripper is not above it yet
    ALIGNED = 0.012  # horizontal distance below which it goes down, and distance at which it closes
    OPEN = 0.07  # opening of the fingers below which they are closing
    HELD = 0.05  # opening below which the thing is between them
    GRIP = (0.0, 0.0, 0.0)  # where the thing is held, in its own frame
    ALIKE = np.pi / 2  # turn of the gripper after which it holds the thing as well; 0: any turn
    ASKEW = 0.0  # horizontal distance that counts as much as a turn of 1 that is missing

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [7]."""
        thing, yaw = obs["object"][:3].astype(np.float64), _yaw(obs["object"][3:7])
        reach = thing + _turned(np.array(self.GRIP), yaw) - obs["robot0_eef_pos"]
        opening = float(np.ptp(obs["robot0_gripper_qpos"]))
        # Fingers that began to close go on, although noise moves the hand.
        close = bool(np.linalg.norm(reach) < self.ALIGNED * (1.0 if opening > self.OPEN else 2.0))
        if close and opening < self.HELD:
            return self.carry(thing, yaw, reach)
        if close:
            return action(reach, closed=True)
        turn = _short_way(yaw - _yaw(obs["robot0_eef_quat"]), self.ALIKE)
        far = float(np.hypot(reach[0], reach[1])) + self.ASKEW * abs(turn)
        # The lower, the better it has to be centred.
        height = self.HOVER * min(max(far / self.ALIGNED - 1.0, 0.0), 1.0)
        return action(2.0 * (reach + np.array([0.0, 0.0, height])), turn)

    @abstractmethod
    def carry(self, thing: np.ndarray, yaw: float, reach: np.ndarray) -> np.ndarray:
        """Return the action [7] while the thing at `thing` [3], turned by `yaw`, is held."""


class LiftExpert(Picking):
    """Grasps the cube of Lift, its fingers along the cube's sides, and lifts it."""

    def carry(self, thing: np.ndarray, yaw: float, reach: np.ndarray) -> np.ndarray:
        """Up."""
        return action(np.array([0.0, 0.0, STEP]), closed=True)


class Placing(Picking):
    """Carries a thing over its place, lowers it there and lets go."""

    ABOVE = 0.0  # height of the thing on its way
    CLEAR = 0.0  # height from which on it may go sideways
    DOWN = 0.0  # height at which it is let go
    CENTRED = 0.01  # horizontal distance to the place below which it goes down

    def __init__(self, place: np.ndarray) -> None:
        self.place = place[:2].astype(np.float64)

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [7]."""
        thing, opening = obs["object"][:3], float(np.ptp(obs["robot0_gripper_qpos"]))
        if thing[2] < self.DOWN and np.linalg.norm(self.place - thing[:2]) < 2 * self.CENTRED:
            return action(np.array([0.0, 0.0, STEP if opening > self.HELD else 0.0]))
        return super().act(obs)

    def carry(self, thing: np.ndarray, yaw: float, reach: np.ndarray) -> np.ndarray:
        """Up, across, down."""
        across = self.place - thing[:2]
        far = float(np.linalg.norm(across))
        over = min(max(far / self.CENTRED - 1.0, 0.0), 1.0)
        floor = self.DOWN - 0.01
        free = 1.0 if over < 1.0 else min(max((thing[2] - floor) / (self.CLEAR - floor), 0.0), 1.0)
        up = floor + over * (self.ABOVE - floor) - thing[2]
        return action(2.0 * np.array([*(free * across), up]), self.twist(yaw), closed=True)

    def twist(self, yaw: float) -> float:
        """The turn that the thing still needs."""
        return 0.0


class CanExpert(Placing):
    """Takes the can of PickPlaceCan over the wall between the bins into its compartment."""

    HOVER, HELD, ALIKE = 0.15, 0.06, 0.0
    GRIP = (0.0, 0.0, 0.025)  # the hand is not to stand on it
    ABOVE, CLEAR, DOWN, CENTRED = 1.02, 0.96, 0.9, 0.03


class SquareExpert(Placing):
    """Takes the nut of NutAssemblySquare by its handle and puts it over the square peg, side along side."""

    GRIP, HELD, ALIKE, ASKEW = (0.06, 0.0, 0.0), 0.034, np.pi, 0.05
    ABOVE, CLEAR, DOWN, CENTRED = 1.0, 0.97, 0.87, 0.006

    def twist(self, yaw: float) -> float:
        """To the nearest of the four ways in which it fits."""
        return _short_way(-yaw, np.pi / 2)


def lift_expert(env: gymnasium.Env[Any, Any], seed: int) -> Expert:
    """Make the expert of `robosuite/lift`; it needs neither the simulator's inside nor a seed."""
    return LiftExpert()


def can_expert(env: gymnasium.Env[Any, Any], seed: int) -> Expert:
    """Make the expert of `robosuite/can`; where the compartment is, the simulator says."""
    sim: Any = env.unwrapped.sim  # type: ignore[attr-defined]
    return CanExpert(sim.target_bin_placements[sim.object_id])


def square_expert(env: gymnasium.Env[Any, Any], seed: int) -> Expert:
    """Make the expert of `robosuite/square`; where the peg is, the simulator says."""
    sim: Any = env.unwrapped.sim  # type: ignore[attr-defined]
    return SquareExpert(np.array(sim.sim.data.body_xpos[sim.peg1_body_id]))


def action(move: np.ndarray, turn: float = 0.0, closed: bool = False) -> np.ndarray:
    """The action [7] that moves the gripper's target by `move` [3] and turns it by `turn` about z, within bounds."""
    wanted = np.array([*(move / STEP), 0.0, 0.0, turn / TURN, 1.0 if closed else -1.0], np.float32)
    return np.clip(wanted, -1.0, 1.0)


def _yaw(quat: np.ndarray) -> float:
    """Angle about z of the x axis that a quaternion (xyzw) turns."""
    x, y, z, w = quat.astype(np.float64)
    return float(np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)))


def _turned(offset: np.ndarray, yaw: float) -> np.ndarray:
    """A vector [3], turned about z."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([c * offset[0] - s * offset[1], s * offset[0] + c * offset[1], offset[2]])


def _short_way(turn: float, alike: float) -> float:
    """The smallest of the turns that differ from `turn` by multiples of `alike`; 0 where all are as good."""
    return turn - alike * float(np.round(turn / alike)) if alike else 0.0
