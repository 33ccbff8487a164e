"""MetaWorld as DP3's published code sees it (arXiv 2403.03954): a cloud from one camera, and where the arm is.

Its cloud is not in the frame of the world. The published code takes the pose of the model's first camera, which is the
identity, for that of the one it looks through; its rotation by two angles then makes z point upwards, to one per cent,
and the camera is the origin. Its crop box counts on that, and on points at the corners of pixels: with points at
their centres the table is 3 to 4 mm higher, and inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.envs.point_clouds import Array, CloudCamera, View

CAMERA = "corner2"
_PLACE = (0.6, 0.295, 0.8)  # m, in place of MetaWorld's own
_SIZE = 128  # px
_CLIP = (0.1, 1.5)  # of the model's extent
_ANGLES = (61.4, -7.0)  # degrees, about x and y
_LOW, _HIGH = (-0.5, -1.5, -0.795), (1.0, -0.4, 100.0)  # m
ARM_DIM = 9


def rotation() -> Array:
    """From the camera's axes to those of the cloud, [3, 3]."""
    (c, d), (s, t) = (f(np.radians(_ANGLES)) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    about_y = np.array([[d, 0, t], [0, 1, 0], [-t, 0, d]])
    return np.asarray(about_x @ about_y)


def cloud_camera(model: Any, count: int, colours: bool) -> CloudCamera:
    """Move the model's camera to where DP3 has it, and look through it."""
    model.camera(CAMERA).pos[:] = _PLACE
    near, far = (share * float(model.stat.extent) for share in _CLIP)
    view = View(CAMERA, _SIZE, (near, far), _LOW, _HIGH, count, colours, rotation(), pixel=0.0)
    return CloudCamera(model, view)


def arm(sim: Any) -> NDArray[np.float32]:
    """Positions of the hand, the right and the left finger, m, [9]."""
    fingers = [sim._get_site_pos(f"{side}EndEffector") for side in ("right", "left")]
    return np.concatenate([sim.get_endeff_pos(), *fingers]).astype(np.float32)
