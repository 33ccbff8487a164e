"""Adroit: a 24-joint hand opens a latched door (gymnasium-robotics), from the low-dim state.

The human demonstrations are those of hand_dapg (arXiv 1709.10087). The environment counts a door as open beyond 1.35
rad, which 28 % of them reach; all of them pass 1.0 rad, from where its reward pays for an open door. Both are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from flowleap.envs.task import Observation, Recording, Scoring, Task
from flowleap.envs.tasks.base import ROBOTICS, SimEnv, Start, Step, import_robotics, origin
from flowleap.policy.core.spec import ObsKey, Spec

TASKS = ("door",)
_OBSERVATIONS = {"state": ObsKey((39,))}
HINGE = 28  # index of the door's angle in the state
ACTION_DIM = 28
CONTROL_HZ = 100.0
MAX_STEPS = (
    300  # the longest demonstrations; gymnasium-robotics' own limit of 200 is shorter than all of them
)
SUCCESS_ANGLE = 1.35  # rad, the environment's own threshold
OPEN_ANGLE = 1.0  # rad
WIDE_ANGLE = 1.4  # rad, beyond which hand_dapg's own environment counts the door as open
_DOOR_HALF_RANGE = 0.05  # m, of what the door's position is drawn from
ANGLE = "hinge_rad"
OPEN = f"hinge_above_{OPEN_ANGLE:g}_rad"
_SEED_NOTE = (
    "the seed draws the door's position within 10 cm along each axis; the hand starts at rest. "
    f"Success is the hinge beyond {SUCCESS_ANGLE} rad at any of {MAX_STEPS} steps (gymnasium-robotics stops at 200)."
)


class AdroitDoorEnv(SimEnv):
    """AdroitHandDoor-v1 with its dense reward, in a Dict observation.

    Observation `state` [39]: arm and hand joints (27, m and rad), latch (rad), hinge (rad), palm and handle positions
    (3 + 3, m), palm minus handle (3, m), and 1 where the hinge is beyond 1.0 rad, else -1.
    Action [28] in [-1, 1]: joint position targets over the range of each actuator.
    `info["success"]`: the hinge is at 1.35 rad or beyond; it does not end the episode. `info["hinge_above_1_rad"]` and
    `info["hinge_rad"]` tell how far the door is open.
    """

    def __init__(self, camera: str = "fixed", image_size: int = 320, render_mode: str | None = None) -> None:
        self.sim = import_robotics("envs.adroit_hand.adroit_door").AdroitHandDoorEnv()
        super().__init__(_OBSERVATIONS, ACTION_DIM, CONTROL_HZ, render_mode)
        self.film(camera, image_size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Draw the door's position; the hand is at rest."""
        super().reset(seed=seed)
        obs, _ = self.sim.reset(seed=seed)
        return _observation(obs), {"success": False, OPEN: False, ANGLE: float(obs[HINGE])}

    def reset_to_state(self, qpos: np.ndarray, qvel: np.ndarray, door_body_pos: np.ndarray) -> Observation:
        """Reset to joint positions [30], velocities [30] and the door frame's position [3] (m)."""
        self.sim.reset(seed=0)
        state = {"qpos": qpos, "qvel": qvel, "door_body_pos": door_body_pos}
        self.sim.set_env_state({key: np.array(value, np.float64) for key, value in state.items()})
        return _observation(self.sim._get_obs())

    def step(self, action: np.ndarray) -> Step:
        """Move the joints towards `action` [28] for 10 ms."""
        obs, reward, _, _, info = self.sim.step(np.asarray(action, np.float64))
        angle = float(obs[HINGE])
        info = {"success": bool(info["success"]), OPEN: angle > OPEN_ANGLE, ANGLE: angle}
        return _observation(obs), float(reward), False, False, info


def wide_open(info: Mapping[str, Any]) -> bool:
    """Whether the door is open beyond 1.4 rad."""
    return bool(info[ANGLE] > WIDE_ANGLE)


def shift_start(env: AdroitDoorEnv, rng: np.random.Generator, strength: float) -> Observation:
    """Move the door at random."""
    state = env.sim.get_env_state()
    position = state["door_body_pos"] + strength * _DOOR_HALF_RANGE * rng.standard_normal(3)
    return env.reset_to_state(state["qpos"], state["qvel"], position)


def make(name: str, max_steps: int = MAX_STEPS, camera: str = "fixed", image_size: int = 320) -> Task:
    """Build `adroit/<name>`; `camera` and `image_size` (px) concern rendering only."""
    return Task(
        name=f"adroit/{name}",
        make_env=partial(AdroitDoorEnv, camera, image_size),
        spec=Spec(
            observations=_OBSERVATIONS,
            action_dim=ACTION_DIM,
            control_hz=CONTROL_HZ,
            action_convention="absolute",
            source=origin(f"adroit/{name}", "AdroitHandDoor-v1", ROBOTICS, max_steps=max_steps),
        ),
        max_steps=max_steps,
        seed_note=_SEED_NOTE,
        scoring=Scoring(outcomes=(OPEN,), measures=(ANGLE,)),
        recording=Recording(
            translate=_from_recorded,
            keys=("observations", "action"),
            reset_to=_reset_to,
            state_keys=(("init_qpos", "init_qvel", "init_door_body_pos"),),
            outcome=_recorded_outcome,
        ),
        shift_start=shift_start,
    )


def _from_recorded(columns: Mapping[str, np.ndarray]) -> Observation:
    """Columns `observations` [N, 39] and `action` [N, 28] of hand_dapg -> `state` and `action`, clipped to [-1, 1]."""
    actions = np.clip(columns["action"], -1.0, 1.0).astype(np.float32)
    return {"state": np.asarray(columns["observations"], np.float32), "action": actions}


def _reset_to(env: AdroitDoorEnv, first: Mapping[str, np.ndarray]) -> Observation:
    return env.reset_to_state(first["init_qpos"], first["init_qvel"], first["init_door_body_pos"])


def _recorded_outcome(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the recorded states [T, 39] say: the widest angle of the hinge."""
    states = columns["observations"] if "observations" in columns else columns.get("state")
    if states is None:
        return {}
    angle = float(states[:, HINGE].max())
    return {"success": angle >= SUCCESS_ANGLE, OPEN: angle > OPEN_ANGLE, ANGLE: angle}


def _observation(obs: np.ndarray) -> Observation:
    return {"state": obs.astype(np.float32)}
