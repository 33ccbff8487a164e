"""MetaWorld: fifty manipulation tasks of a Sawyer arm (V3), from the low-dim state, from cameras or a point cloud.

Every seed draws a fresh placement of object and goal from the task's whole range, where the `Meta-World/MT1`
benchmark cycles through fifty that are drawn when the environment is made.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np

from flowleap.envs.point_clouds import CloudCamera
from flowleap.envs.rendering import OffscreenRenderer
from flowleap.envs.task import Observation, Task
from flowleap.envs.tasks import metaworld_cloud
from flowleap.envs.tasks.base import SimEnv, Start, Step, origin
from flowleap.policy.core.errors import FlowleapError, optional_import, suggest
from flowleap.policy.core.registry import Option, check_options, parameters_of
from flowleap.policy.core.spec import ObsKey, Spec


class MetaWorldExpert:
    """MetaWorld's scripted policy of one task; it needs no seed."""

    def __init__(self, name: str, env: gymnasium.Env[Any, Any], seed: int) -> None:
        # Its gains exceed the action bounds on purpose, and it says so every time.
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
        policies = optional_import("metaworld.policies", extra="metaworld")
        self._env: Any = env
        self._policy = policies.ENV_POLICY_MAP[name]()

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [4], clipped to [-1, 1] as the environment would."""
        state = obs.get("state", self._env.state)  # neither cameras nor clouds show it
        action = self._policy.get_action(state.astype(np.float64))
        return np.clip(action, -1.0, 1.0).astype(np.float32)


_NAMES = """
assembly-v3 basketball-v3 bin-picking-v3 box-close-v3 button-press-topdown-v3 button-press-topdown-wall-v3
button-press-v3 button-press-wall-v3 coffee-button-v3 coffee-pull-v3 coffee-push-v3 dial-turn-v3
disassemble-v3 door-close-v3 door-lock-v3 door-open-v3 door-unlock-v3 drawer-close-v3 drawer-open-v3
faucet-close-v3 faucet-open-v3 hammer-v3 hand-insert-v3 handle-press-side-v3 handle-press-v3
handle-pull-side-v3 handle-pull-v3 lever-pull-v3 peg-insert-side-v3 peg-unplug-side-v3 pick-out-of-hole-v3
pick-place-v3 pick-place-wall-v3 plate-slide-back-side-v3 plate-slide-back-v3 plate-slide-side-v3
plate-slide-v3 push-back-v3 push-v3 push-wall-v3 reach-v3 reach-wall-v3 shelf-place-v3 soccer-v3
stick-pull-v3 stick-push-v3 sweep-into-v3 sweep-v3 window-close-v3 window-open-v3
"""
TASKS = tuple(_NAMES.split())
STATE_DIM = 39
HAND_DIM = 4
CLOUD, ARM = "point_cloud", "agent_pos"  # DP3's names
CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
CONTROL_HZ = 80.0
_PACKAGES = ("metaworld", "mujoco", "gymnasium")
MAX_STEPS = 500  # the benchmark's limit
_SEED_NOTE = (
    "the seed draws a fresh object and goal placement from the task's whole range (not MT1's fifty); "
    "success counts at any step, and ends the episode."
)

# What `reset_model` moves in the compiled model, and would otherwise carry into the next episode.
_MODEL_FIELDS = ("body_pos", "body_quat", "site_pos", "site_quat")
# Attributes of the simulator that are no state of an episode.
_KEPT = frozenset({"model", "data", "mujoco_renderer", "_np_random", "_np_random_seed"})


class MetaWorldEnv(SimEnv):
    """One V3 task with the goal observable.

    By default: observation `state` [39], m: hand position [3], gripper opening in [0, 1] [1], object positions and
    quaternions, zero-padded [14]; the same 18 numbers one step earlier; goal position [3].
    With cameras: one image key each, uint8 [camera_size, camera_size, 3], and `hand` [4], the first four of these
    numbers; where objects and goal are is for the images to tell.
    With a cloud: `point_cloud` [points, 3 or 6] and `agent_pos` [9], see `metaworld_cloud`.
    Action [4] in [-1, 1]: displacement of the hand target in units of 1 cm, and the gripper's closing effort.
    The episode terminates with `info["success"]`.

    `reset(seed=...)` depends on the seed alone, whatever was simulated before.

    Attributes:
        images: the keys of images and clouds that observations hold; whoever needs none of the next one empties it.
        state: what `state` is or would be, float32 [39], for experts.
    """

    def __init__(
        self,
        name: str,
        camera: str,
        image_size: int,
        observations: Mapping[str, ObsKey],
        render_mode: str | None = None,
    ) -> None:
        super().__init__(observations, 4, CONTROL_HZ, render_mode)
        self.sim = _simulators()[name]()
        self._mujoco = optional_import("mujoco", extra="metaworld")
        self.sim._set_task_called = True
        self.sim._freeze_rand_vec = False  # draw a placement at every reset ...
        self.sim.seeded_rand_vec = True  # ... from the seed given to it
        self.sim._partially_observable = False
        self.sim.__dict__.pop("sawyer_observation_space", None)  # computed while the goal was hidden
        self.sim.max_path_length = float("inf")  # whoever drives the environment limits the episode
        state = vars(self.sim).items()
        self._initial = copy.deepcopy({key: value for key, value in state if key not in _KEPT})
        self._initial_model = {key: getattr(self.sim.model, key).copy() for key in _MODEL_FIELDS}
        self.film(camera, image_size)
        self._numbers = [key for key, obs in observations.items() if obs.kind == "lowdim"]
        self.images = tuple(key for key in observations if key not in self._numbers)
        self._eyes: OffscreenRenderer | None = None
        self._cloud: CloudCamera | None = None
        if CLOUD in self.images:
            count, channels = observations[CLOUD].shape
            self._cloud = metaworld_cloud.cloud_camera(self.sim.model, count, channels > 3)
        elif self.images:
            size = observations[self.images[0]].shape[0]
            self._eyes = OffscreenRenderer(self.sim.model, self.images, size)
        self.state = np.zeros(STATE_DIM, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Draw a placement and put the hand into its initial position."""
        super().reset(seed=seed)
        for key in set(vars(self.sim)) - set(self._initial) - _KEPT:
            delattr(self.sim, key)
        vars(self.sim).update(copy.deepcopy(self._initial))
        for key, value in self._initial_model.items():
            getattr(self.sim.model, key)[:] = value
        self._mujoco.mj_resetData(self.sim.model, self.sim.data)
        self.sim.np_random = self.np_random
        self.sim.reset_model()  # draws the placement
        # Some tasks move bodies too late for their first observation. A second pass with the same placement
        # shows them where they are; the benchmark, where placements are drawn beforehand, does the same.
        self.sim._freeze_rand_vec = True
        return self._observe(self.sim.reset()[0]), {"success": False}

    def step(self, action: np.ndarray) -> Step:
        """Move the hand target and the gripper for 1/80 s."""
        obs, reward, _, _, info = self.sim.step(np.clip(action, -1.0, 1.0))
        success = bool(info["success"])
        return self._observe(obs), float(reward), success, False, {"success": success}

    def _observe(self, state: np.ndarray) -> Observation:
        self.state = state.astype(np.float32)
        return {key: self._see(key) for key in (*self.images, *self._numbers)}

    def _see(self, key: str) -> np.ndarray:
        if key == "state":
            return self.state
        if key == "hand":
            return self.state[:HAND_DIM]
        if key == ARM:
            return metaworld_cloud.arm(self.sim)
        if self._cloud is not None:
            return self._cloud(self.sim.data)
        assert self._eyes is not None
        return self._eyes.render(self.sim.data, key)

    def close(self) -> None:
        """Release the simulator and the renderers."""
        super().close()
        for renderer in (self._eyes, self._cloud):
            if renderer is not None:
                renderer.close()


def make(
    name: str,
    max_steps: int = MAX_STEPS,
    camera: str = "corner",
    image_size: int = 320,
    camera_size: int = 84,
    *,
    observe: Annotated[
        Literal["state", "points"],
        Option("points: a point cloud instead of the state, as DP3's code makes it"),
    ] = "state",
    points: Annotated[int, Option("of the cloud", 1, 128**2)] = 512,
    colours: Annotated[bool, Option("the cloud's points have red, green and blue, too")] = False,
    cameras: Annotated[
        str | Sequence[str] | None,
        Option("see through these cameras, such as [corner2], instead of the state"),
    ] = None,
) -> Task:
    """Build `metaworld/<name>`.

    Args:
        camera, image_size (px): of videos.
        camera_size: side of the images that the policy sees, px.
        observe, points, colours: see `metaworld_cloud`.
        cameras: what it sees instead of the state: their images and the hand; a name or several.
    """
    cloud = {"observe": observe, "points": points, "colours": colours}
    check_options(
        "task", {key: p for key, p in parameters_of(make).items() if key in cloud}, cloud, "task.kwargs"
    )
    eyes = (cameras,) if isinstance(cameras, str) else tuple(map(str, cameras or ()))
    for eye in eyes:
        if eyes.count(eye) > 1:
            raise FlowleapError(f"cameras names {eye!r} twice")
        if eye not in CAMERAS:
            raise FlowleapError(
                f"no camera {eye!r} in MetaWorld{suggest(eye, CAMERAS)}; it has {', '.join(CAMERAS)}"
            )
    seen: dict[str, Any] = {}
    if observe == "points":
        if eyes:
            raise FlowleapError("a policy sees through cameras, or observe=points; leave out one of them")
        seen = cloud
        shape = (points, 6 if colours else 3)
        observations = {CLOUD: ObsKey(shape, kind="points"), ARM: ObsKey((metaworld_cloud.ARM_DIM,))}
    elif eyes:
        seen = {"cameras": list(eyes), "camera_size": camera_size}
        images = {eye: ObsKey((camera_size, camera_size, 3), "uint8", "rgb") for eye in eyes}
        observations = images | {"hand": ObsKey((HAND_DIM,))}
    else:
        observations = {"state": ObsKey((STATE_DIM,))}
    return Task(
        name=f"metaworld/{name}",
        make_env=partial(MetaWorldEnv, name, camera, image_size, observations),
        spec=Spec(
            observations=observations,
            action_dim=4,
            control_hz=CONTROL_HZ,
            action_convention="delta",
            source=origin(f"metaworld/{name}", name, _PACKAGES, max_steps=max_steps, **seen),
        ),
        max_steps=max_steps,
        seed_note=_SEED_NOTE,
        expert=partial(MetaWorldExpert, name),
    )


def _simulators() -> Mapping[str, Any]:
    """Return task name -> simulator class."""
    try:
        return optional_import("metaworld.env_dict", extra="metaworld").ALL_V3_ENVIRONMENTS
    except (ImportError, AttributeError, RuntimeError) as error:
        # MuJoCo loads the backend named there on import, rendering or not.
        if backend := os.environ.get("MUJOCO_GL"):
            raise FlowleapError(f"MUJOCO_GL={backend} does not work here ({error}); unset it") from error
        raise
