"""Push-T: push a T-shaped block onto its outline with a round finger (gym-pusht), from low-dim state or pixels.

Three tasks on one environment. `pusht/state` gives the block's position and angle, the angle as (cos, sin) so
that no seam lies between -pi and pi; `pusht/keypoints` gives the block's eight corners, computed from that;
`pusht/pixels` gives the board as the demonstrations recorded it, 96 x 96 px, and the finger's position.
Lengths are pixels of the 512 x 512 board; an action is the absolute position that the finger is drawn to.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from flowleap.envs.task import Observation, Recording, Scoring, Task
from flowleap.envs.tasks.base import SimEnv, Start, Step, origin
from flowleap.policy.core.errors import optional_import
from flowleap.policy.core.spec import ObsKey, Spec

TASKS = ("state", "keypoints", "pixels")

MAX_STEPS = 300
CONTROL_HZ = 10.0
RENDER_SIZE = 384
IMAGE, IMAGE_SIZE = "image", 96

BOARD = 512.0  # px, side of the board
SUCCESS_COVERAGE = 0.95  # gym-pusht's
GOAL_POSE = (256.0, 256.0, math.pi / 4)  # px, px, rad
# The T in its own frame is two boxes that share an edge, bar and stem: x0, y0, x1, y1.
BOXES = ((-60.0, 0.0, 60.0, 30.0), (-15.0, 30.0, 15.0, 120.0))
AREA = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in BOXES)
# Corners of the T in its own frame (bar, then stem), in the order of gym-pusht's `environment_state`.
CORNERS = np.array(
    [(-60, 0), (60, 0), (60, 30), (-60, 30), (-15, 30), (15, 30), (15, 120), (-15, 120)], dtype=np.float64
)

# The T is symmetric about its stem, and the goal's stem lies on a diagonal of the square board, so the reflection
# (x, y) -> (512 - y, 512 - x) maps board, goal and T to themselves; the T's corners change places pairwise.
MIRRORED_CORNERS = [1, 0, 3, 2, 5, 4, 7, 6]

# Of what initial states are drawn from: finger 50 to 450, block 100 to 400 (px), any angle (rad).
_MIDDLE = 250.0
_HALF_RANGES = np.array([200.0, 200.0, 150.0, 150.0, math.pi])

_SEED_NOTE = (
    "gym-pusht's own seeding: the seed draws finger, block position and block angle; the goal is fixed. "
    "Published Push-T tables seed a different generator, so equal seed numbers are other initial states, which "
    "protocol=diffusion_policy draws."
)


def block_keypoints(position: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Corners in the world of a block at `position` [..., 2] (px), turned by `angle` [...] (rad).

    Returns: [..., 16], px: x0, y0, x1, y1, ... in the order of `CORNERS`.
    """
    position, angle = np.asarray(position, np.float64), np.asarray(angle, np.float64)
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    x = CORNERS[:, 0] * cos - CORNERS[:, 1] * sin
    y = CORNERS[:, 0] * sin + CORNERS[:, 1] * cos
    corners = np.stack([x, y], axis=-1) + position[..., None, :]
    return corners.reshape(*position.shape[:-1], -1)


def coverage(position: tuple[float, float], angle: float) -> float:
    """Share of the goal that a block at `position` (px) and `angle` (rad) covers, in [0, 1].

    gym-pusht's `_get_coverage` in plain float arithmetic: the same value to 1e-12, but equal to the last bit
    in every run (shapely sums in memory order), and ten times faster.
    """
    # The block's boxes in the goal's frame, where the goal's own boxes are axis-aligned.
    dx, dy, turn = position[0] - GOAL_POSE[0], position[1] - GOAL_POSE[1], angle - GOAL_POSE[2]
    cos_goal, sin_goal = math.cos(GOAL_POSE[2]), math.sin(GOAL_POSE[2])
    shift = (cos_goal * dx + sin_goal * dy, cos_goal * dy - sin_goal * dx)
    cos, sin = math.cos(turn), math.sin(turn)
    covered = 0.0
    for x0, y0, x1, y1 in BOXES:
        corners = [
            (shift[0] + cos * x - sin * y, shift[1] + sin * x + cos * y)
            for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        ]
        covered += sum(_overlap(corners, box) for box in BOXES)
    return covered / AREA


def _overlap(polygon: list[tuple[float, float]], box: tuple[float, float, float, float]) -> float:
    """Area shared by a convex polygon and an axis-aligned box (Sutherland-Hodgman, shoelace)."""
    for axis, bound, sign in ((0, box[0], 1.0), (1, box[1], 1.0), (0, box[2], -1.0), (1, box[3], -1.0)):
        inside = [sign * (point[axis] - bound) for point in polygon]  # signed distance, >= 0 is kept
        clipped: list[tuple[float, float]] = []
        for i, (x, y) in enumerate(polygon):
            if inside[i - 1] * inside[i] < 0.0:  # the edge from the previous corner crosses the border
                t = inside[i - 1] / (inside[i - 1] - inside[i])
                px, py = polygon[i - 1]
                clipped.append((px + t * (x - px), py + t * (y - py)))
            if inside[i] >= 0.0:
                clipped.append((x, y))
        polygon = clipped
        if not polygon:
            return 0.0
    twice = sum(polygon[i - 1][0] * y - x * polygon[i - 1][1] for i, (x, y) in enumerate(polygon))
    return abs(twice) / 2.0


def state_observation(state: np.ndarray) -> Observation:
    """`[..., 5]` (finger xy, block xy, block angle) -> the observation of `pusht/state`, float32."""
    state = np.asarray(state, np.float64)
    angle = np.stack([np.cos(state[..., 4]), np.sin(state[..., 4])], axis=-1).astype(np.float32)
    position = state[..., 2:4].astype(np.float32)
    return {**finger_observation(state), "block_position": position, "block_angle": angle}


def keypoints_observation(state: np.ndarray) -> Observation:
    """`[..., 5]` (finger xy, block xy, block angle) -> the observation of `pusht/keypoints`, float32."""
    state = np.asarray(state, np.float64)
    keypoints = block_keypoints(state[..., 2:4], state[..., 4]).astype(np.float32)
    return {**finger_observation(state), "keypoints": keypoints}


def mirror(columns: Mapping[str, np.ndarray]) -> Observation:
    """Reflect columns of any of the tasks, each [N, ...], across the diagonal of the board that is the goal's axis."""
    mirrored: Observation = {}
    for key, value in columns.items():
        if key == "block_angle":  # pi / 2 - angle: cosine and sine change places
            mirrored[key] = value[..., ::-1].copy()
        elif key == IMAGE:  # rows and columns change places, both counted from the other end
            mirrored[key] = value[:, ::-1, ::-1].swapaxes(1, 2)
        else:
            points = value.reshape(len(value), -1, 2)
            if key == "keypoints":
                points = points[:, MIRRORED_CORNERS]
            mirrored[key] = (BOARD - points[..., ::-1]).reshape(value.shape).astype(value.dtype)
    return mirrored


def finger_observation(state: np.ndarray) -> Observation:
    """`[..., 5]` (finger xy, block xy, block angle) -> the low-dim part of `pusht/pixels`, float32."""
    return {"agent_pos": np.asarray(state)[..., :2].astype(np.float32)}


_OBSERVATIONS: dict[str, Callable[[np.ndarray], Observation]] = {
    "state": state_observation,
    "keypoints": keypoints_observation,
    "pixels": finger_observation,
}
_PAIR = ObsKey((2,))
_KEYS: dict[str, dict[str, ObsKey]] = {
    "state": {"agent_pos": _PAIR, "block_position": _PAIR, "block_angle": _PAIR},
    "keypoints": {"agent_pos": _PAIR, "keypoints": ObsKey((16,))},
    "pixels": {IMAGE: ObsKey((IMAGE_SIZE, IMAGE_SIZE, 3), "uint8", "rgb"), "agent_pos": _PAIR},
}


class PushTEnv(SimEnv):
    """gym-pusht's environment with dictionary observations computed from the exact pose.

    Reward: covered share of the goal / 0.95, clipped at 1. The episode terminates with `info["success"]` once
    the coverage exceeds 0.95. `info["coverage"]` is the raw share.

    Attributes:
        images: the image keys that observations hold; whoever needs none of the next one empties it.
    """

    def __init__(self, observation: str, render_mode: str | None = None) -> None:
        # pygame greets on import, and gym-pusht imports it whether it draws or not.
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        gym_pusht = optional_import("gym_pusht.envs.pusht", extra="pusht")
        shown = dict.fromkeys(("visualization_width", "visualization_height"), RENDER_SIZE)
        seen = dict.fromkeys(("observation_width", "observation_height"), IMAGE_SIZE)
        self.sim = gym_pusht.PushTEnv(obs_type="state", render_mode="rgb_array", **shown, **seen)
        self.sim._get_coverage = lambda: coverage(self.sim.block.position, self.sim.block.angle)
        self._lowdim = _OBSERVATIONS[observation]
        super().__init__(_KEYS[observation], 2, CONTROL_HZ, render_mode, 0.0, BOARD)
        self.images = (IMAGE,) if IMAGE in _KEYS[observation] else ()

    def _observe(self) -> Observation:
        images: Observation = {key: self.sim._render() for key in self.images}
        return images | self._lowdim(self.state())

    def state(self) -> np.ndarray:
        """Finger xy, block xy (px) and block angle (rad), float64 [5]."""
        agent, block = self.sim.agent, self.sim.block
        return np.array([*agent.position, *block.position, block.angle])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Draw an initial state as gym-pusht does; `options` are its own."""
        super().reset(seed=seed)
        self.sim._last_action = None  # else the first frame shows the last target of the episode before
        self.sim.reset(seed=seed, options=options)
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> Step:
        """Draw the finger towards `action` [2] (px, absolute) for 0.1 s."""
        _, reward, terminated, _, info = self.sim.step(np.asarray(action, np.float64))
        info = {"success": bool(info["is_success"]), "coverage": float(info["coverage"])}
        return self._observe(), float(reward), bool(terminated), False, info

    def render(self) -> np.ndarray:
        """Return the board as uint8 [384, 384, 3]."""
        return self.sim.render()

    def reset_to_state(self, state: np.ndarray) -> Observation:
        """Reset to finger xy, block xy (px) and angle (rad), all at rest; return the observation.

        gym-pusht's own `reset_to_state` sets the position before the angle. A pymunk body turns about its
        centre of gravity, which is not the T's origin: the block lands up to 78 px away. So angle first.
        """
        self.reset(seed=0)
        agent, block = self.sim.agent, self.sim.block
        agent.position = (float(state[0]), float(state[1]))
        agent.velocity = block.velocity = (0.0, 0.0)
        block.angular_velocity = 0.0
        block.angle = float(state[4])
        block.position = (float(state[2]), float(state[3]))
        for body in (agent, block):  # collision shapes follow at once; a physics step would move the block
            self.sim.space.reindex_shapes_for_body(body)
        return self._observe()


def legacy_start(seed: int) -> dict[str, Any]:
    """Options of `reset` for the initial state that Diffusion Policy's environment (arXiv 2303.04137) draws of a seed.

    gym-pusht sets the position before the angle, as that environment does for its published scores.
    """
    rng = np.random.RandomState(seed)
    drawn = [rng.randint(50, 450), rng.randint(50, 450), rng.randint(100, 400), rng.randint(100, 400)]
    return {"reset_to_state": np.array([*drawn, rng.randn() * 2 * np.pi - np.pi])}


def shift_start(env: PushTEnv, rng: np.random.Generator, strength: float) -> Observation:
    """Move finger and block at random, inside of the places that gym-pusht draws from."""
    state = env.state() + strength * _HALF_RANGES * rng.standard_normal(5)
    state[:4] = np.clip(state[:4], _MIDDLE - _HALF_RANGES[:4], _MIDDLE + _HALF_RANGES[:4])
    return env.reset_to_state(state)


def make(name: str) -> Task:
    """Build `pusht/<name>`."""
    keys, images = _KEYS[name], IMAGE in _KEYS[name]
    return Task(
        name=f"pusht/{name}",
        make_env=partial(PushTEnv, name),
        spec=Spec(
            observations=keys,
            action_dim=2,
            control_hz=CONTROL_HZ,
            action_convention="absolute",
            source=origin(f"pusht/{name}", "gym_pusht/PushT-v0", ("gym-pusht", "pymunk", "gymnasium")),
        ),
        max_steps=MAX_STEPS,
        seed_note=_SEED_NOTE,
        scoring=Scoring("max_reward", measures=("coverage",)),
        recording=Recording(
            translate=partial(_from_recorded, _OBSERVATIONS[name], images),
            keys=("img", "state", "action") if images else ("state", "action"),
            reset_to=_reset_to,
            state_keys=(("state",), tuple(key for key in keys if key != IMAGE)),
            outcome=_recorded_outcome,
        ),
        mirror=mirror,
        shift_start=shift_start,
    )


def recorded_state(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Finger xy, block xy (px) and block angle (rad), [..., 5], from `state` or the observation of either task."""
    if "state" in columns:
        return np.asarray(columns["state"], np.float64)
    agent = np.asarray(columns["agent_pos"], np.float64)
    if "keypoints" in columns:  # the first two corners lie left and right of the T's origin, 120 px apart
        corners = np.asarray(columns["keypoints"], np.float64).reshape(*agent.shape[:-1], -1, 2)
        left, right = corners[..., 0, :], corners[..., 1, :]
        position, axis = (left + right) / 2, right - left
    else:
        position, axis = np.asarray(columns["block_position"], np.float64), columns["block_angle"]
    return np.concatenate([agent, position, np.arctan2(axis[..., 1:], axis[..., :1])], axis=-1)


def _reset_to(env: PushTEnv, first: Mapping[str, np.ndarray]) -> Observation:
    return env.reset_to_state(recorded_state(first))


def _recorded_outcome(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the recorded poses say: the largest coverage of the goal, but for the step after the last frame."""
    best = max(coverage((x, y), angle) for x, y, angle in recorded_state(columns)[:, 2:].tolist())
    rewarded = min(best / SUCCESS_COVERAGE, 1.0)
    return {"max_reward": rewarded, "success": best > SUCCESS_COVERAGE, "coverage": best}


def _from_recorded(
    observe: Callable[[np.ndarray], Observation], images: bool, columns: Mapping[str, Any]
) -> dict[str, Any]:
    """Columns `state` [N, 5] and `action` [N, 2] of the published zarr -> this task's keys and `action`.

    Images `img` [N, 96, 96, 3] are passed on as they come.
    """
    seen: dict[str, Any] = {IMAGE: columns["img"]} if images else {}
    return {**seen, **observe(columns["state"]), "action": np.asarray(columns["action"], np.float32)}
