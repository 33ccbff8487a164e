"""OpenGL without a screen: which backend of MuJoCo renders here, and the renderer that uses it.

Nothing here runs for tasks that are not rendered. A backend is tried in a process of its own, because a
broken driver may crash or hang rather than raise.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.files import atomic

_BACKENDS = {"linux": ("egl", "osmesa"), "darwin": ("cgl",)}.get(sys.platform, ("glfw",))
_TIMEOUT_S = 60.0
_REMEDY = {"egl": "apt-get install libegl1 libgl1-mesa-dri", "osmesa": "apt-get install libosmesa6"}
_LIBRARY = {"egl": "EGL", "osmesa": "OSMesa"}
_SELF_TEST = "import sys; from flowleap.envs.rendering import _self_test; _self_test(sys.argv[1])"


@cache
def probe_gl() -> dict[str, str]:
    """Try every backend; return backend -> "ok" or the reason why it does not render. Takes seconds, once."""
    return {backend: _probe(backend) for backend in _candidates()}


@cache
def choose_gl() -> str:
    """Return the first backend that renders; a `MUJOCO_GL` set by the user is the only candidate.

    Raises:
        FlowleapError: none renders; the message says how to get one.
    """
    # Mesa's software renderer and triton (which comes with torch on Linux) each bring an LLVM. If Mesa loads its own
    # first, the later import of triton, by torch.compile or diffusers, ends in a segmentation fault.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")
    reasons = {}
    for backend in _candidates():
        reasons[backend] = _probe(backend)
        if reasons[backend] == "ok":
            return backend
    tried = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
    remedies = " or ".join(f"`{_REMEDY[backend]}`" for backend in _BACKENDS if backend in _REMEDY)
    if os.environ.get("MUJOCO_GL"):
        remedies = f"`unset MUJOCO_GL`, which allows no other, or {remedies}".removesuffix(", or ")
    advice = f"; try {remedies}" if remedies else ""
    raise FlowleapError(f"no OpenGL backend renders here ({tried}){advice}")


class OffscreenRenderer:
    """Renders cameras of a MuJoCo model into memory, without shadows, reflections and multisampling.

    Those three cost 15 times the rest when a CPU rasterises.
    """

    def __init__(self, model: Any, cameras: Sequence[str], size: int, backend: str | None = None) -> None:
        """`cameras` are names of cameras in `model`; images are `size` x `size` px."""
        import mujoco

        names = [model.camera(i).name for i in range(model.ncam)]
        for camera in cameras:
            if camera not in names:
                raise FlowleapError(f"no camera {camera!r} in this scene, it has {names}")
        backend = backend or choose_gl()
        self._mujoco = mujoco
        self._model = model
        self._rect = mujoco.MjrRect(0, 0, size, size)
        # Read when the context is made:
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        self._gl = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # the finer one, far away
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._cameras = {camera: names.index(camera) for camera in cameras}
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option, self._perturb = mujoco.MjvOption(), mujoco.MjvPerturb()

    def hide(self, group: int) -> None:
        """Leave the geoms of a group (0 to 5) out of the images."""
        self._option.geomgroup[group] = 0

    def render(self, data: Any, camera: str) -> np.ndarray:
        """Return a camera's image of the state in `data` (MjData), uint8 [size, size, 3], top row first."""
        image = self._draw(data, camera)
        # World z of the camera's up axis; the gripper's camera turns with the hand, the others hang as they were built.
        upside_down = self._model.cam_mat0[self._view.fixedcamid][7] < -0.1
        # OpenGL counts rows from below; a camera hung upside down is turned by half a turn.
        return (image[:, ::-1] if upside_down else image[::-1]).copy()

    def render_depth(self, data: Any, camera: str, near: float, far: float) -> tuple[np.ndarray, np.ndarray]:
        """Return what a camera sees from `near` to `far`, m, and how far away it is along the view.

        Returns:
            the image, uint8 [size, size, 3], and depth, float64 [size, size], m, 0 where there is nothing. Their top
            row lies along the camera's up axis, also where it hangs upside down.
        """
        clip = self._model.vis.map
        before, extent = (clip.znear, clip.zfar), self._model.stat.extent
        clip.znear, clip.zfar = near / extent, far / extent
        depth = np.empty((self._rect.height, self._rect.width), np.float32)
        try:
            image = self._draw(data, camera, depth)
        finally:
            clip.znear, clip.zfar = before
        # The buffer holds 1 / depth, from 1 at `near` to 0 at `far`.
        seen = depth[::-1].astype(np.float64)
        metric = 1.0 / (1.0 / far + seen * (1.0 / near - 1.0 / far))
        return image[::-1].copy(), np.where(seen > 0, metric, 0.0)

    def _draw(self, data: Any, camera: str, depth: np.ndarray | None = None) -> np.ndarray:
        """Return the pixels uint8 [size, size, 3] and fill `depth`, bottom row first."""
        mujoco = self._mujoco
        self._gl.make_current()
        self._view.fixedcamid = self._cameras[camera]
        drawn = (self._option, self._perturb, self._view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        mujoco.mjv_updateScene(self._model, data, *drawn)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        image = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, depth, self._rect, self._context)
        return image

    def close(self) -> None:
        """Free the context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def _candidates() -> tuple[str, ...]:
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    return (chosen,) if chosen else _BACKENDS


@cache
def _probe(backend: str) -> str:
    if backend not in (*_BACKENDS, "glfw"):
        return f"MUJOCO_GL={backend} is not one of {_BACKENDS}"
    environment = {**os.environ, "MUJOCO_GL": backend}
    environment.pop("PYOPENGL_PLATFORM", None)  # left behind by a backend that this process imported
    try:
        command = [sys.executable, "-c", _SELF_TEST, backend]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no answer within {_TIMEOUT_S:g} s"
    if result.returncode == 0:
        return "ok"
    if backend in _LIBRARY and ctypes.util.find_library(_LIBRARY[backend]) is None:
        return f"lib{_LIBRARY[backend]} is not installed"
    last = result.stderr.strip().splitlines()
    return last[-1][:200] if last else f"exit code {result.returncode}"


def _self_test(backend: str) -> None:
    """Render a white box with `backend`; raise unless it can be seen."""
    import mujoco

    geom = '<geom type="box" size="1 1 1"/>'
    world = f'<worldbody><camera name="c" pos="0 0 3"/>{geom}</worldbody>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco>{world}</mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = OffscreenRenderer(model, ["c"], 32, backend)
    if not renderer.render(data, "c").any():
        raise FlowleapError("it draws nothing but black")
    renderer.close()


def save_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float) -> Path:
    """Write frames uint8 [T, height, width, 3] as `.mp4` (H.264) or `.gif`, atomically; return the path.

    Raises:
        FlowleapError: another suffix, or the packages of the extra `video` are missing.
    """
    imageio = optional_import("imageio.v2", extra="video")
    path = Path(path)
    options: dict[str, dict[str, Any]] = {
        ".mp4": {"fps": fps, "macro_block_size": 2, "quality": 7},
        ".gif": {"duration": 1000.0 / fps, "loop": 0},
    }
    if path.suffix not in options:
        raise FlowleapError(f"{path.name}: videos are written as .mp4 or .gif")
    if path.suffix == ".mp4":
        optional_import("imageio_ffmpeg", extra="video")  # imageio's own complaint names another package
    with atomic(path) as temporary:
        imageio.mimwrite(temporary, list(frames), **options[path.suffix])
    return path


def film_strip(frames: np.ndarray, count: int = 6) -> np.ndarray:
    """Put `count` frames, evenly spaced from first to last, side by side: [height, count * width, 3]."""
    picks = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return np.concatenate(list(frames[picks]), axis=1)
