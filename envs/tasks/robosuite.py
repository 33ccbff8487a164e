"""robosuite: manipulation with a Panda arm under operational-space control, from the low-dim state.

The environment is made from robomimic's `env_args` (name, robot, controller, control rate), so that a policy
trained on a robomimic file meets the environment in which the file was recorded. robosuite 1.4 is meant: later
versions refuse the controllers of those files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from flowleap.datasets.formats.robomimic import action_convention
from flowleap.envs.rendering import OffscreenRenderer
from flowleap.envs.task import SCENE, Observation, Recording, Task
from flowleap.envs.tasks.base import SimEnv, Start, Step, numpy_seed, origin, without_gl
from flowleap.envs.tasks.robosuite_experts import can_expert, lift_expert, square_expert
from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.spec import ActionConvention, ObsKey, Spec

TASKS = ("lift", "can", "square")
# Task -> robosuite's name, numbers in `object`, numbers in the simulator's state (time, qpos, qvel).
_SCENES = {"lift": ("Lift", 10, 32), "can": ("PickPlaceCan", 14, 71), "square": ("NutAssemblySquare", 14, 45)}
_EXPERTS = {"lift": lift_expert, "can": can_expert, "square": square_expert}
_PACKAGES = ("robosuite", "mujoco", "gymnasium")
ACTION_DIM = 7
CONTROL_HZ = 20.0
MAX_STEPS = 400  # robomimic's horizon for all three
STATES = "states"  # column with the simulator's state, as robomimic calls it
_SEED_NOTE = (
    "the seed draws the objects' placement (and the size of Lift's cube, 4.0 to 4.4 cm) and noise on the arm's "
    "initial joints; success counts at any step, and ends the episode."
)

# The controller of robomimic's files v1.4.1: an action of 1 asks for 5 cm or 0.5 rad.
_CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}

# What of `env_kwargs` this environment decides itself: it draws by its own renderer, and only when asked.
_OFF = dict.fromkeys(("has_renderer", "has_offscreen_renderer", "use_camera_obs"), False)
_OWN = {**_OFF, "use_object_obs": True, "ignore_done": True}
_NO_TASK = "leave out task=... to train without a simulator"
_COLLISION_GROUP = 0  # of geoms: what the contacts see, drawn over what people should see


class RobosuiteEnv(SimEnv):
    """One of robosuite's tasks for one arm.

    Observation, named as in robomimic's low-dim files: `object` [10 or 14]: position (m) and quaternion (xyzw)
    of the object, and its pose or position relative to the gripper; `robot0_eef_pos` [3], m; `robot0_eef_quat`
    [4], xyzw; `robot0_gripper_qpos` [2], m.
    Action [7]: displacement of the gripper's target in units of 5 cm [3], its rotation (axis-angle, base frame)
    in units of 0.5 rad [3], each in [-1, 1], and the gripper: 1 closes, -1 opens. Where the controller of
    `env_args` takes absolute poses, the first six are m and rad, unbounded.
    `info["states"]` is the simulator's state, float64, after every reset and step. The episode terminates with
    `info["success"]`.

    `reset(seed=...)` depends on the seed alone, whatever was simulated before; robosuite draws from numpy's global
    generator, which is left as it was.
    """

    def __init__(
        self,
        name: str,
        env_args: Mapping[str, Any],
        camera: str = "agentview",
        image_size: int = 320,
        render_mode: str | None = None,
    ) -> None:
        self._camera, self._image_size = camera, image_size
        self._rendered: Any = None  # the compiled model that the renderer draws
        given = env_args["env_kwargs"].items()
        kwargs = {k: v for k, v in given if k not in _OWN and not k.startswith(("camera_", "render"))}
        suite = _import_robosuite()
        with numpy_seed(0):
            try:
                self.sim = suite.make(_SCENES[name][0], **kwargs, **_OWN)
            except Exception as error:  # robosuite raises no narrower kind for what it does not take
                kind = kwargs["controller_configs"]["type"]
                if "pybullet" in str(error):
                    raise FlowleapError(
                        f"the controller {kind} of env_args needs pybullet (`pip install pybullet-svl`), or evaluate "
                        "with OSC_POSE (task.kwargs.env_args)"
                    ) from error
                raise FlowleapError(
                    f"robosuite {suite.__version__} refuses the env_args (controller {kind}) of robosuite "
                    f"{env_args.get('env_version', 'of an unknown version')}: {type(error).__name__}: {error}"
                ) from error
        if self.sim.action_dim != ACTION_DIM:
            raise FlowleapError(
                f"the controller of env_args takes {self.sim.action_dim} numbers; robosuite/{name} needs the "
                f"{ACTION_DIM} of OSC_POSE"
            )
        self._bound = np.ones(ACTION_DIM, np.float32)
        if _convention(env_args) == "absolute":
            self._bound[:6] = np.inf
        super().__init__(_observations(name), ACTION_DIM, CONTROL_HZ, render_mode, -self._bound, self._bound)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Draw the placement; the arm is near its initial position, the gripper open."""
        super().reset(seed=seed)
        with numpy_seed(int(self.np_random.integers(2**32))):
            recorded = self.sim.reset()
        return _named(recorded), self._info()

    def reset_to(self, state: np.ndarray, model: str | None = None) -> Observation:
        """Go to a recorded state and return its observation.

        Args:
            state: the simulator's flattened state [S] (time, qpos, qvel), one row of robomimic's `states`.
            model: the scene as MJCF (robomimic's `model_file`); None keeps that of the last reset.

        Raises:
            FlowleapError: the model does not load, or the state does not belong to this scene.
        """
        if model is not None:
            with numpy_seed(0):
                self.sim.reset()
                try:
                    self.sim.reset_from_xml_string(self.sim.edit_model_xml(model))
                except Exception as error:  # the parsers of robosuite and of MuJoCo
                    problem = f"the scene of the recording (model_file) does not load: {error}"
                    raise FlowleapError(problem) from error
            self.sim.sim.reset()
        sim = self.sim.sim
        size = 1 + sim.model.nq + sim.model.nv
        if np.shape(state) != (size,):
            raise FlowleapError(f"a state of this scene has shape ({size},), not {np.shape(state)}")
        sim.set_state_from_flattened(np.asarray(state, np.float64))
        sim.forward()
        return _named(self.sim._get_observations(force_update=True))

    def step(self, action: np.ndarray) -> Step:
        """Move gripper target and fingers for one control period."""
        recorded, reward, _, _ = self.sim.step(np.clip(action, -self._bound, self._bound))
        info = self._info()
        return _named(recorded), float(reward), info["success"], False, info

    def render(self) -> np.ndarray:
        """Return the camera's image, uint8 [image_size, image_size, 3]."""
        self._require_rendering()
        model = self.sim.sim.model._model
        if self._film is None or self._rendered is not model:  # a reset compiles a new model
            self.close()
            self._film = OffscreenRenderer(model, [self._camera], self._image_size)
            self._film.hide(_COLLISION_GROUP)
            self._rendered = model
        return self._film.render(self.sim.sim.data._data, self._camera)

    def physics(self) -> Any:
        """The MuJoCo model, which a reset compiles anew."""
        return self.sim.sim.model._model

    def close(self) -> None:
        """Release the renderer."""
        if self._film is not None:
            self._film.close()
            self._film = None

    def _info(self) -> dict[str, Any]:
        return {"success": bool(self.sim._check_success()), STATES: self.sim.sim.get_state().flatten()}


def make(
    name: str,
    max_steps: int = MAX_STEPS,
    env_args: Mapping[str, Any] | None = None,
    camera: str = "agentview",
    image_size: int = 320,
) -> Task:
    """Build `robosuite/<name>`.

    Args:
        env_args: robomimic's description of the environment; None is that of its files v1.4.1. What it says of
            rendering is not used.
        camera, image_size (px): for rendering only.

    Raises:
        FlowleapError: `env_args` describes another environment.
    """
    args = default_env_args(name) if env_args is None else _checked(name, env_args)
    return Task(
        name=f"robosuite/{name}",
        make_env=partial(RobosuiteEnv, name, args, camera, image_size),
        spec=Spec(
            observations=_observations(name),
            action_dim=ACTION_DIM,
            control_hz=float(args["env_kwargs"].get("control_freq", CONTROL_HZ)),
            action_convention=_convention(args),
            source=origin(f"robosuite/{name}", args["env_name"], _PACKAGES, max_steps=max_steps)
            | {"env_args": args},
        ),
        max_steps=max_steps,
        seed_note=_SEED_NOTE,
        expert=_EXPERTS[name],
        recording=Recording(
            reset_to=reset_to,
            state_keys=((STATES,),),
            info_columns={STATES: ObsKey((_SCENES[name][2],), "float64")},
        ),
    )


def default_env_args(name: str) -> dict[str, Any]:
    """Return the `env_args` of robomimic's public files of a task."""
    kwargs = {**_OWN, "robots": ["Panda"], "control_freq": int(CONTROL_HZ), "reward_shaping": False}
    return {
        "env_name": _SCENES[name][0],
        "env_version": "1.4.1",
        "type": 1,  # robomimic's number for robosuite
        "env_kwargs": {**kwargs, "controller_configs": dict(_CONTROLLER)},
    }


def reset_to(env: RobosuiteEnv, first: Mapping[str, Any]) -> Observation:
    """Put an environment into a recorded state: `states` [S], in the `scene` (MJCF) if the recording has it."""
    return env.reset_to(first[STATES], first.get(SCENE))


def _checked(name: str, env_args: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `env_args`, which come from files of others."""
    expected = _SCENES[name][0]
    found, kwargs = env_args.get("env_name"), env_args.get("env_kwargs")
    if found != expected:
        other = next((task for task, (scene, *_) in _SCENES.items() if scene == found), None)
        remedy = f"say task=robosuite/{other}" if other else f"no task here simulates it; {_NO_TASK}"
        described = f"task robosuite/{name} is robosuite's {expected}, but env_args describe {found!r}"
        raise FlowleapError(f"{described}: {remedy}")
    if not isinstance(kwargs, Mapping):
        problem = f"have no env_kwargs: the robot and its controller are unknown; {_NO_TASK}"
        raise FlowleapError(f"env_args of {expected} {problem}")
    controller, version = kwargs.get("controller_configs"), str(env_args.get("env_version", ""))
    if _is_later(version) or (isinstance(controller, Mapping) and "body_parts" in controller):
        raise FlowleapError(_later(name, version or "1.5", action_convention(env_args)))
    if not isinstance(controller, Mapping) or "type" not in controller:
        raise FlowleapError(
            f"env_args of {expected} have no controller_configs of robosuite 1.4: the meaning of its actions is "
            f"unknown; {_NO_TASK}"
        )
    robots = kwargs.get("robots")
    if isinstance(robots, list | tuple) and len(robots) != 1:
        raise FlowleapError(
            f"env_args have the robots {list(robots)}, robosuite/{name} has one arm; {_NO_TASK}"
        )
    return {**env_args, "env_kwargs": dict(kwargs)}


def _is_later(version: str) -> bool:
    """Whether a version is 1.5 or later, whose simulation is another one."""
    numbers = re.match(r"([0-9]+)\.([0-9]+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) >= (1, 5)


def _later(name: str, version: str, convention: ActionConvention) -> str:
    """What to do with a recording of robosuite 1.5. Its models move differently, so no translation is exact."""
    same = (
        ""
        if convention == "absolute"
        else ", or say +task.kwargs.env_args=null to meet that of 1.4.1 all the same"
    )
    return (
        f"the dataset was recorded with robosuite {version}, whose controllers and models robosuite 1.4.1 does not "
        f"have, so robosuite/{name} is another environment: take robomimic's files of 1.4.1 (`flowleap download "
        f"robomimic/{name}_ph_v141`), {_NO_TASK}{same}"
    )


def _convention(env_args: Mapping[str, Any]) -> ActionConvention:
    return "delta" if env_args["env_kwargs"]["controller_configs"].get("control_delta", True) else "absolute"


def _observations(name: str) -> dict[str, ObsKey]:
    arm = {
        "robot0_eef_pos": ObsKey((3,)),
        "robot0_eef_quat": ObsKey((4,)),
        "robot0_gripper_qpos": ObsKey((2,)),
    }
    return {"object": ObsKey((_SCENES[name][1],)), **arm}


def _named(recorded: Mapping[str, np.ndarray]) -> Observation:
    """What robosuite observes, under robomimic's names."""
    keys = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    obs = {"object": recorded["object-state"], **{key: recorded[key] for key in keys}}
    return {key: np.asarray(value, np.float32) for key, value in obs.items()}


def _import_robosuite() -> ModuleType:
    """Import robosuite without OpenGL and without its advice to write a file of settings into its folder.

    Both hang on that file, `macros_private.py`: a stand-in for it says that nothing is drawn. A file there is not
    read, which also keeps a changed time step out of the results.
    """
    if loaded := sys.modules.get("robosuite"):
        return loaded
    settings = "robosuite.macros_private"
    stand_in = ModuleType(settings)
    vars(stand_in)["MUJOCO_GPU_RENDERING"] = False
    sys.modules[settings] = stand_in
    try:
        with without_gl():
            return optional_import("robosuite", extra="robosuite")
    except ImportError as error:  # OpenCV, which it imports for its viewer, wants libraries of the system
        raise FlowleapError(
            f"robosuite cannot be imported: {error}; try `pip install --force-reinstall opencv-python-headless`"
        ) from error
    finally:
        del sys.modules[settings]
