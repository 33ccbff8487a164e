"""What the task families share: spaces, a renderer, the origin that a Spec tells, and quiet imports."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space

from flowleap.envs.rendering import OffscreenRenderer
from flowleap.envs.task import Observation
from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.spec import ObsKey
from flowleap.policy.core.versions import package_versions

ROBOTICS = ("gymnasium-robotics", "mujoco", "gymnasium")  # the packages whose versions decide its tasks
Start = tuple[Observation, dict[str, Any]]
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class SimEnv(gymnasium.Env[Observation, np.ndarray]):
    """An environment around a simulator `sim`, which subclasses make before they call this initialiser.

    The spaces follow from a Spec's observations and the bounds of the action [A], numbers or arrays [A].
    """

    sim: Any
    _film: OffscreenRenderer | None = None

    def __init__(
        self,
        observations: Mapping[str, ObsKey],
        action_dim: int,
        control_hz: float,
        render_mode: str | None,
        low: float | np.ndarray = -1.0,
        high: float | np.ndarray = 1.0,
    ) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": int(control_hz)}
        self.render_mode = render_mode
        spaces: dict[str, Space[Any]] = {key: _space(obs) for key, obs in observations.items()}
        self.observation_space = cast(Space[Observation], Dict(spaces))
        self.action_space = Box(low, high, (action_dim,), dtype=np.float32)

    def physics(self) -> Any:
        """The simulator's MuJoCo model; None where it is another simulator."""
        return getattr(self.sim, "model", None)

    def film(self, camera: str, size: int) -> None:
        """Choose what `render` draws: a camera of the simulator's MuJoCo model, `size` x `size` px."""
        self._camera = camera
        if self.render_mode is not None:
            self._film = OffscreenRenderer(self.sim.model, [camera], size)

    def render(self) -> np.ndarray:
        """Return the camera's image, uint8 [image_size, image_size, 3]."""
        self._require_rendering()
        assert self._film is not None
        return self._film.render(self.sim.data, self._camera)

    def close(self) -> None:
        """Release the renderer and the simulator."""
        if self._film is not None:
            self._film.close()
        self.sim.close()

    def _require_rendering(self) -> None:
        if self.render_mode is None:
            raise FlowleapError("make the environment with render_mode='rgb_array' to render it")


def _space(obs: ObsKey) -> Box:
    if obs.kind == "rgb":
        return Box(0, 255, obs.shape, np.uint8)
    return Box(-np.inf, np.inf, obs.shape, np.float32)


def origin(task: str, env_id: str, packages: tuple[str, ...], **kwargs: Any) -> dict[str, Any]:
    """A Spec's `source`: the task, its options, the simulator's own name for it, versions of `packages`."""
    return {"task": task, "env_id": env_id, "kwargs": kwargs, "versions": package_versions(*packages)}


@contextlib.contextmanager
def without_gl() -> Iterator[None]:
    """Import a package for its physics, without the OpenGL that it would load: our renderer chooses a backend."""
    importlib.import_module("mujoco")  # reads MUJOCO_GL, too, and shall not see this one
    backend = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        if backend is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = backend


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, from which some simulators draw, and put it back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def import_robotics(module: str) -> Any:
    """Import `gymnasium_robotics.<module>` without the notice it prints; raise naming the extra if it is missing."""
    with contextlib.redirect_stderr(io.StringIO()):
        optional_import("gymnasium_robotics", extra="robotics")
        return optional_import(f"gymnasium_robotics.{module}", extra="robotics")
