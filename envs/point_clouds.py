"""Point clouds from depth: pixels to points, a box to crop to, farthest points of what is left.

Cameras are MuJoCo's: x to the right of the image, y up, z against the view; `fovy` spans its height.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.envs.rendering import OffscreenRenderer
from flowleap.policy.core.errors import FlowleapError

Array = NDArray[np.float64]


def unproject(depth: NDArray[Any], fovy: float, pixel: float = 0.5) -> Array:
    """The points [N, 3] in the camera's axes, m, that the pixels of a depth image see, row by row.

    Args:
        depth: [height, width], m along the view, top row first; pixels of 0 saw nothing and are left out.
        fovy: vertical field of view, degrees. Pixels are square, and the view goes through the image's centre.
        pixel: where in a pixel the point lies that it saw: 0.5 is its centre, 0 its upper left corner.
    """
    height, width = depth.shape
    focal = height / (2.0 * np.tan(np.radians(fovy) / 2.0))
    row, column = np.nonzero(depth)
    away = depth[row, column].astype(np.float64)
    right = (column + pixel - width / 2.0) / focal
    up = (height / 2.0 - row - pixel) / focal
    return np.stack([right * away, up * away, -away], axis=1)


def within(points: NDArray[Any], low: Array, high: Array) -> NDArray[np.bool_]:
    """Which of the points [N, 3] lie inside the open box from `low` [3] to `high` [3]: bool [N]."""
    inside = (points > low) & (points < high)
    return np.asarray(inside.all(axis=1))


def farthest_points(points: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Indices [count] of points [N, 3] that lie far from each other.

    Begins with the first point; each next one is the farthest from those that are chosen, the first of several. Where
    N <= count, all points in their order, repeated as often as it takes: a maximum over them does not notice.

    Raises:
        FlowleapError: there is no point.
    """
    if not len(points):
        raise FlowleapError("no point is left to choose from")
    if len(points) <= count:
        return np.arange(count) % len(points)
    # One contiguous row an axis and no new arrays: most of the time is spent here.
    rows = np.ascontiguousarray(points.T, np.float32)
    nearest = np.full(len(points), np.inf, np.float32)
    squared, own = np.empty_like(nearest), np.empty_like(nearest)
    chosen = np.zeros(count, np.intp)
    for i in range(1, count):
        last = chosen[i - 1]
        np.subtract(rows[0], rows[0, last], out=squared)
        np.multiply(squared, squared, out=squared)
        for row in rows[1:]:
            np.subtract(row, row[last], out=own)
            np.multiply(own, own, out=own)
            np.add(squared, own, out=squared)
        np.minimum(nearest, squared, out=nearest)
        chosen[i] = nearest.argmax()
    return chosen


@dataclass(frozen=True)
class View:
    """What a cloud holds of what a camera sees.

    Attributes:
        camera: its name in the model.
        size: side of the depth image, px.
        clip: nearest and farthest distance that are seen, m.
        low, high: the box that is kept, in the frame of the cloud, m.
        count: points of the cloud.
        colours: whether red, green and blue, 0 to 1, follow the position.
        rotation: from the camera's axes to those of the cloud, [3, 3], whose origin is the camera then; None: the cloud
            is in the world's frame.
        pixel: see `unproject`.
    """

    camera: str
    size: int
    clip: tuple[float, float]
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    count: int
    colours: bool = False
    rotation: Array | None = None
    pixel: float = 0.5


class CloudCamera:
    """Looks at a MuJoCo model, and makes a cloud of what it sees."""

    def __init__(self, model: Any, view: View) -> None:
        """Raises `FlowleapError` where no OpenGL backend works, or the model has no such camera."""
        self._view = view
        self._renderer = OffscreenRenderer(model, [view.camera], view.size)
        self._fovy = float(model.camera(view.camera).fovy[0])

    def __call__(self, data: Any) -> NDArray[np.float32]:
        """The cloud [count, 3 or 6] of the state in `data` (MjData), m (and colours).

        Raises:
            FlowleapError: the camera sees nothing inside the box.
        """
        view = self._view
        image, depth = self._renderer.render_depth(data, view.camera, *view.clip)
        points = unproject(depth, self._fovy, view.pixel)
        if view.rotation is None:
            pose = data.camera(view.camera)
            points = points @ pose.xmat.reshape(3, 3).T + pose.xpos
        else:
            points = points @ view.rotation.T
        kept = within(points, np.array(view.low), np.array(view.high))
        if not kept.any():
            raise FlowleapError(f"camera {view.camera!r} sees nothing between {view.low} and {view.high}")
        points = points[kept]
        chosen = farthest_points(points, view.count)
        if view.colours:
            points = np.concatenate([points, image[depth > 0][kept] / 255.0], axis=1)
        return points[chosen].astype(np.float32)

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()
