"""Slalom: a planar effector passes three posts, each left or right: eight routes, all equally good.

A probe of mode coverage. Robot benchmarks are nearly unimodal given the observation, so that a policy which
always takes one of several good ways scores as well as one that knows them all. Here the expert draws its
route at random and nothing in the observation tells which, but for where the effector is: a policy that
averages the routes runs into a post, and one that drops some shows it in the entropy of the routes taken.

The way leads along +y; "left" is x < 0. Posts stand on the axis x = 0 and the expert returns to the axis
between them: every route has the same length, the decision comes anew at each post, and the mirror image of
an episode is as likely as the episode. Lengths are metres; an action is the absolute position the effector is
drawn to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from flowleap.envs.task import Expert, Observation, Scoring, Task
from flowleap.envs.tasks.base import SimEnv, Start, Step, origin
from flowleap.policy.core.spec import ObsKey, Spec

TASKS = ("slalom",)

MAX_STEPS = 100
CONTROL_HZ = 10.0

POSTS = (-0.24, 0.0, 0.24)  # y of the posts, m
POST_RADIUS = 0.04
EFFECTOR_RADIUS = 0.015
GOAL_RADIUS = 0.03
START, GOAL = (0.0, -0.42), (0.0, 0.42)  # m; both jittered, uniformly within +-JITTER in x and y
JITTER = 0.02
BOUNDS = (0.2, 0.5)  # |x|, |y| of targets, m
# Bit k of a route is set where post k is passed on the left; routes are named in the order of the posts.
ROUTES = tuple(
    "".join("L" if route >> k & 1 else "R" for k in range(len(POSTS))) for route in range(2 ** len(POSTS))
)

SWING = 0.12  # the expert's target when level with a post: its distance from the axis, m
SWING_LENGTH = 0.11  # it leaves the axis, and is back, this far from the post along y, m
LOOKAHEAD = 0.018  # of its target along y, m

_ROUTE_STREAM = (
    0x51A  # keeps the expert's route apart from any other generator seeded with the episode's seed
)
_SUBSTEPS = 10
_OBSERVATIONS = dict.fromkeys(("position", "velocity", "goal"), ObsKey((2,)))

# A unit mass on two critically damped position servos (20 rad/s), free of gravity.
_MJCF = f"""
<mujoco model="slalom">
  <option timestep="{1 / (CONTROL_HZ * _SUBSTEPS)}" gravity="0 0 0" integrator="implicitfast"/>
  <worldbody>
    <body>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom type="sphere" size="{EFFECTOR_RADIUS}" mass="1"/>
    </body>
    {"".join(f'<geom type="cylinder" size="{POST_RADIUS} 0.1" pos="0 {y} 0"/>' for y in POSTS)}
  </worldbody>
  <actuator>
    <position joint="x" kp="400" kv="40"/>
    <position joint="y" kp="400" kv="40"/>
  </actuator>
</mujoco>
"""

_SEED_NOTE = (
    "the seed draws start and goal within 2 cm and, apart from them, the expert's route; "
    "touching a post ends the episode as a failure."
)


class SlalomEnv(SimEnv):
    """Three posts between start and goal.

    Observation: `position` [2] and `velocity` [2] of the effector (m, m/s), `goal` [2] (m).
    Action [2]: target position, m; a critically damped servo follows it.
    The episode terminates with `info["success"]` inside the goal region, and without it at the first touch of
    a post. `info["mode"]` is the index in `ROUTES` of the route taken, -1 until all posts have been passed.
    Reward: 1 on success, else 0.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        import mujoco  # only now: listing tasks loads no simulator

        self._mujoco: Any = mujoco
        self.model = self._mujoco.MjModel.from_xml_string(_MJCF)
        self.data = self._mujoco.MjData(self.model)
        self._bounds = np.array(BOUNDS, np.float32)
        super().__init__(_OBSERVATIONS, 2, CONTROL_HZ, render_mode, -self._bounds, self._bounds)
        self.goal = np.array(GOAL)
        self._touched = False
        self._left: list[bool | None] = [None] * len(POSTS)  # None: not passed
        self._trail: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Draw start and goal; the effector is at rest."""
        super().reset(seed=seed)
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = START + self.np_random.uniform(-JITTER, JITTER, 2)
        self.goal = GOAL + self.np_random.uniform(-JITTER, JITTER, 2)
        self._touched, self._left = False, [None] * len(POSTS)
        self._trail = [self.data.qpos.copy()]
        return self._observe(), self._info()

    def shift_start(self, rng: np.random.Generator, strength: float) -> Observation:
        """Move start and goal at random; return the observation."""
        self.data.qpos[:] += strength * JITTER * rng.standard_normal(2)
        self.goal = self.goal + strength * JITTER * rng.standard_normal(2)
        self._trail = [self.data.qpos.copy()]
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        """Draw the effector towards `action` [2] (m, absolute) for 0.1 s."""
        self.data.ctrl[:] = np.clip(action, -self._bounds, self._bounds)
        for _ in range(_SUBSTEPS):
            before = self.data.qpos[1]
            self._mujoco.mj_step(self.model, self.data)
            self._touched |= self.data.ncon > 0
            self._note_passing(before, *self.data.qpos)
        self._trail.append(self.data.qpos.copy())
        info = self._info()
        return self._observe(), float(info["success"]), info["success"] or self._touched, False, info

    def render(self) -> np.ndarray:
        """Draw the plane from above, +y up, with the way so far: uint8 [384, 192, 3]."""
        self._require_rendering()
        image = np.full((384, 192, 3), 255.0)
        _disc(image, self.goal, GOAL_RADIUS, (150, 214, 160))
        for y in POSTS:
            _disc(image, (0.0, y), POST_RADIUS, (90, 96, 110))
        for point in self._trail:
            _disc(image, point, 0.004, (160, 190, 235))
        _disc(image, self._trail[-1], EFFECTOR_RADIUS, (200, 50, 40) if self._touched else (40, 90, 200))
        return image.round().astype(np.uint8)

    def physics(self) -> Any:
        """The MuJoCo model."""
        return self.model

    def close(self) -> None:
        """Nothing is open."""

    def _note_passing(self, before: float, x: float, y: float) -> None:
        """Note on which side the posts between `before` and `y` were passed; going back undoes it."""
        for k, post in enumerate(POSTS):
            if before < post <= y:
                self._left[k] = x < 0.0
            elif y < post <= before:
                self._left[k] = None

    def _info(self) -> dict[str, Any]:
        reached = math.dist(self.data.qpos, self.goal) <= GOAL_RADIUS
        passed = None not in self._left
        route = sum(1 << k for k, left in enumerate(self._left) if left)
        return {"success": reached and not self._touched, "mode": route if passed else -1}

    def _observe(self) -> Observation:
        values = {"position": self.data.qpos, "velocity": self.data.qvel, "goal": self.goal}
        return {key: value.astype(np.float32) for key, value in values.items()}


class SlalomExpert:
    """Follows the axis and swings round each post on the side that its route says.

    The target, a point of the path a little further along y than the effector, is a function of where that
    is and of the route: demonstrations with noise on the executed action show how to return.
    """

    def __init__(self, route: int) -> None:
        self.route = route

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the target [2], m."""
        goal_x, goal_y = map(float, obs["goal"])
        y = min(float(obs["position"][1]) + LOOKAHEAD, goal_y)
        return np.array([self._path(y, goal_x, goal_y), y], np.float32)

    def _path(self, y: float, goal_x: float, goal_y: float) -> float:
        """The path's x at `y`: cosine swings round the posts, then a straight line to the goal."""
        for k, post in enumerate(POSTS):
            if abs(y - post) < SWING_LENGTH:
                side = -1.0 if self.route >> k & 1 else 1.0
                return side * SWING * math.cos(math.pi / 2 * (y - post) / SWING_LENGTH) ** 2
        free = POSTS[-1] + SWING_LENGTH
        return goal_x * max(0.0, (y - free) / (goal_y - free))


def slalom_expert(env: gymnasium.Env[Any, Any], seed: int) -> Expert:
    """Make the expert of one episode; its route is uniform and independent of start and goal."""
    return SlalomExpert(int(np.random.default_rng([seed, _ROUTE_STREAM]).integers(len(ROUTES))))


def make(name: str) -> Task:
    """Build `probe/<name>`."""
    return Task(
        name=f"probe/{name}",
        make_env=SlalomEnv,
        spec=Spec(
            observations=_OBSERVATIONS,
            action_dim=2,
            control_hz=CONTROL_HZ,
            action_convention="absolute",
            source=origin(f"probe/{name}", name, ("mujoco", "gymnasium")),
        ),
        max_steps=MAX_STEPS,
        seed_note=_SEED_NOTE,
        expert=slalom_expert,
        scoring=Scoring(modes=ROUTES),
        shift_start=SlalomEnv.shift_start,
    )


def _disc(
    image: np.ndarray, centre: tuple[float, float] | np.ndarray, radius: float, colour: tuple[int, int, int]
) -> None:
    """Blend a disc (m) into `image` [height, width, 3], one pixel soft at its rim."""
    height, width = image.shape[:2]
    scale = height / (2 * BOUNDS[1])  # pixels a metre
    x = (np.arange(width) + 0.5 - width / 2) / scale - centre[0]
    y = (height / 2 - np.arange(height) - 0.5) / scale - centre[1]
    inside = np.clip((radius - np.hypot(x, y[:, None])) * scale + 0.5, 0.0, 1.0)[..., None]
    image += inside * (np.array(colour) - image)
