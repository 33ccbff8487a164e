"""Adroit: a 24-joint hand opens a door, hammers, turns a pen, carries a ball (gymnasium-robotics), low-dim state.

Tasks, human demonstrations and expert policies are those of hand_dapg (arXiv 1709.10087). Success is what the
environment calls so, at any step; its authors ask for more than 25 such steps (pen: 20), which is reported beside it.

The environment counts a door as open beyond 1.35 rad, which 28 % of the human demonstrations reach; all of them pass
1.0 rad, from where its reward pays for an open door. Both are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import gymnasium
import numpy as np

from flowleap.envs.task import Observation, Recording, Scoring, Task
from flowleap.envs.tasks.adroit_expert import PolicyExpert, load_weights
from flowleap.envs.tasks.base import ROBOTICS, SimEnv, Start, Step, import_robotics, origin
from flowleap.policy.core.registry import Option
from flowleap.policy.core.spec import ObsKey, Spec

CONTROL_HZ = 100.0
HINGE = 28  # index of the door's angle in the state
SUCCESS_ANGLE = 1.35  # rad, the environment's own threshold
OPEN_ANGLE = 1.0  # rad
WIDE_ANGLE = 1.4  # rad, beyond which hand_dapg's own environment counts the door as open
ANGLE = "hinge_rad"
OPEN = f"hinge_above_{OPEN_ANGLE:g}_rad"


@dataclass(frozen=True)
class Drawn:
    """A position in the compiled model that a reset draws.

    Attributes:
        field: `body_pos` or `site_pos`.
        name: of the body or site.
        half_range: m, along each axis.
    """

    field: str
    name: str
    half_range: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """What sets one task apart.

    Attributes:
        state_dim, action_dim: D and A.
        max_steps: the time limit.
        held: steps of success that hand_dapg asks for more than.
        seed_note: what a seed draws, and what success is.
        drawn: what `shift_start` moves.
    """

    state_dim: int
    action_dim: int
    max_steps: int
    held: int
    seed_note: str
    drawn: tuple[Drawn, ...] = ()

    @property
    def outcome(self) -> str:
        """The name of hand_dapg's own criterion."""
        return f"success_over_{self.held}_steps"


SCENES = {
    "door": Scene(
        39,
        28,
        300,  # the longest human demonstrations; gymnasium-robotics' own limit of 200 is shorter than all of them
        25,
        "the seed draws the door's position within 10 cm along each axis; the hand starts at rest. "
        f"Success is the hinge beyond {SUCCESS_ANGLE} rad at any of 300 steps (gymnasium-robotics stops at 200).",
        (Drawn("body_pos", "frame", (0.05, 0.05, 0.05)),),
    ),
    "hammer": Scene(
        46,
        26,
        200,
        25,
        "the seed draws the board's height within 15 cm; the hand starts at rest. "
        "Success is the nail within 1 cm of its end at any of 200 steps.",
        (Drawn("body_pos", "nail_board", (0.0, 0.0, 0.075)),),
    ),
    "pen": Scene(
        45,
        24,
        100,
        20,
        "the seed draws two angles of the pen's goal within 1 rad; some seeds begin there. Success is the pen within "
        "7.5 cm and 18 degrees of it at any of 100 steps, hand_dapg's limit (gymnasium-robotics: 200).",
    ),
    "relocate": Scene(
        39,
        30,
        200,
        25,
        "the seed draws the ball's place on the table and the goal in the air, within 30 to 45 cm along each axis; the "
        "hand starts at rest. Success is the ball within 10 cm of the goal at any of 200 steps.",
        (Drawn("body_pos", "Object", (0.15, 0.225, 0.0)), Drawn("site_pos", "target", (0.2, 0.2, 0.1))),
    ),
}
TASKS = tuple(SCENES)


class AdroitEnv(SimEnv):
    """AdroitHand{Hammer,Pen,Relocate}-v1 with their dense rewards, in a Dict observation.

    Observation `state`, rad and m:
        hammer [46]: arm and hand joints (27), the hammer's velocity (6, clipped to 1), positions of palm (3) and hammer
            (3), its rotation (Euler, 3), position of the nail (3), force on it (N, clipped to 1).
        pen [45]: hand joints (24), the pen's position (3), velocity (6) and direction (3), the goal's direction (3),
            position and direction minus the goal's (3 + 3).
        relocate [39]: arm and hand joints (30), palm minus ball, palm minus goal, ball minus goal (3 each).
    Action [26, 24, 30] in [-1, 1]: joint position targets over the range of each actuator.
    `info["success"]` does not end the episode. `info["success_over_25_steps"]` (pen: 20) says whether it was true in
    more than so many steps so far.
    """

    def __init__(
        self, name: str, camera: str = "fixed", image_size: int = 320, render_mode: str | None = None
    ) -> None:
        self.scene = SCENES[name]
        module = import_robotics(f"envs.adroit_hand.adroit_{name}")
        self.sim = getattr(module, f"AdroitHand{name.capitalize()}Env")()
        super().__init__(_observations(name), self.scene.action_dim, CONTROL_HZ, render_mode)
        self.film(camera, image_size)
        self._successes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Draw what the seed decides; the hand is at rest."""
        super().reset(seed=seed)
        obs, _ = self.sim.reset(seed=seed)
        self._successes = 0
        return _observation(obs), self._info(obs, False)

    def step(self, action: np.ndarray) -> Step:
        """Move the joints towards `action` [A] for 10 ms."""
        obs, reward, _, _, info = self.sim.step(np.asarray(action, np.float64))
        success = bool(info["success"])
        self._successes += success
        return _observation(obs), float(reward), False, False, self._info(obs, success)

    def _info(self, obs: np.ndarray, success: bool) -> dict[str, Any]:
        return {"success": success, self.scene.outcome: self._successes > self.scene.held}


class AdroitDoorEnv(AdroitEnv):
    """AdroitHandDoor-v1 with its dense reward, in a Dict observation.

    Observation `state` [39]: arm and hand joints (27, m and rad), latch (rad), hinge (rad), palm and handle positions
    (3 + 3, m), palm minus handle (3, m), and 1 where the hinge is beyond 1.0 rad, else -1.
    Action [28] in [-1, 1]: joint position targets over the range of each actuator.
    `info["success"]`: the hinge is at 1.35 rad or beyond; it does not end the episode. `info["hinge_above_1_rad"]` and
    `info["hinge_rad"]` tell how far the door is open.
    """

    def reset_to_state(self, qpos: np.ndarray, qvel: np.ndarray, door_body_pos: np.ndarray) -> Observation:
        """Reset to joint positions [30], velocities [30] and the door frame's position [3] (m)."""
        self.reset(seed=0)
        state = {"qpos": qpos, "qvel": qvel, "door_body_pos": door_body_pos}
        self.sim.set_env_state({key: np.array(value, np.float64) for key, value in state.items()})
        return _observation(self.sim._get_obs())

    def _info(self, obs: np.ndarray, success: bool) -> dict[str, Any]:
        angle = float(obs[HINGE])
        return super()._info(obs, success) | {OPEN: angle > OPEN_ANGLE, ANGLE: angle}


def wide_open(info: Mapping[str, Any]) -> bool:
    """Whether the door is open beyond 1.4 rad."""
    return bool(info[ANGLE] > WIDE_ANGLE)


def shift_start(env: AdroitEnv, rng: np.random.Generator, strength: float) -> Observation:
    """Move at random what a reset places."""
    for drawn in env.scene.drawn:
        kind = drawn.field.partition("_")[0]
        index = getattr(env.sim.model, kind)(drawn.name).id
        moved = strength * np.array(drawn.half_range) * rng.standard_normal(3)
        getattr(env.sim.model, drawn.field)[index] += moved
    env.sim.set_state(env.sim.data.qpos.copy(), env.sim.data.qvel.copy())
    return _observation(env.sim._get_obs())


def make(
    name: str,
    max_steps: int | None = None,
    camera: str = "fixed",
    image_size: int = 320,
    *,
    expert: Annotated[
        str | None,
        Option(
            "for `collect`: weights of an expert, FILE.npz or a folder of them; null is data/adroit_experts"
        ),
    ] = None,
) -> Task:
    """Build `adroit/<name>`; `camera` and `image_size` (px) concern rendering only."""
    scene, door = SCENES[name], name == "door"
    limit = scene.max_steps if max_steps is None else max_steps
    return Task(
        name=f"adroit/{name}",
        make_env=partial(AdroitDoorEnv if door else AdroitEnv, name, camera, image_size),
        spec=Spec(
            observations=_observations(name),
            action_dim=scene.action_dim,
            control_hz=CONTROL_HZ,
            action_convention="absolute",
            source=origin(f"adroit/{name}", f"AdroitHand{name.capitalize()}-v1", ROBOTICS, max_steps=limit),
        ),
        max_steps=limit,
        seed_note=scene.seed_note,
        expert=partial(_expert, name, expert),
        demonstrator="a policy",
        scoring=Scoring(outcomes=(OPEN, scene.outcome), measures=(ANGLE,))
        if door
        else Scoring(outcomes=(scene.outcome,)),
        recording=_HUMAN if door else Recording(),
        shift_start=shift_start if scene.drawn else None,
    )


def _expert(name: str, given: str | None, env: gymnasium.Env[Any, Any], seed: int) -> PolicyExpert:
    scene = SCENES[name]
    return PolicyExpert(load_weights(given, name, scene.state_dim, scene.action_dim))


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
    angles = states[:, HINGE]
    widest, scene = float(angles.max()), SCENES["door"]
    held = int((angles >= SUCCESS_ANGLE).sum()) > scene.held
    return {"success": widest >= SUCCESS_ANGLE, OPEN: widest > OPEN_ANGLE, ANGLE: widest, scene.outcome: held}


_HUMAN = Recording(
    translate=_from_recorded,
    keys=("observations", "action"),
    reset_to=_reset_to,
    state_keys=(("init_qpos", "init_qvel", "init_door_body_pos"),),
    outcome=_recorded_outcome,
)


def _observations(name: str) -> dict[str, ObsKey]:
    return {"state": ObsKey((SCENES[name].state_dim,))}


def _observation(obs: np.ndarray) -> Observation:
    return {"state": obs.astype(np.float32)}
