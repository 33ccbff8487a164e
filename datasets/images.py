"""Images as recorders leave them, and what makes of them those that the rest of the project knows.

`rgb` is uint8 [H, W, 3], `depth` float32 [H, W, 1]. Recorders also put the channels first, leave out the axis of a
single channel, add a fourth one, and write floats from 0 to 1 or 0 to 255.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ObsKey
from flowleap.policy.core.views import View, choose_view

MANY = 1024  # numbers a frame, on two axes or more, that are no plain input of a network any more
_MIN_SIDE = 16  # what is smaller is no image
_LONGEST = 4  # times the other side: a table without channels that is longer is none
_ROUNDING = 2e-3  # of the range, by which resizing filters overshoot


class NoImages(FlowleapError):
    """Frames of a column hold numbers that are none of the images that it holds elsewhere.

    Attributes:
        problem: what is wrong, without a remedy.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}; {remedy}")


@dataclass(frozen=True)
class Picture:
    """How a column of images was recorded, and what makes those of `key` of its frames.

    Attributes:
        stored: a frame as it lies.
        key: a frame as it is read.
        channel_axis: of a stored frame; None where there is none.
        scale: by which stored numbers become 0 to 255.
        views: what is made of the images after that, now.
    """

    stored: ObsKey
    key: ObsKey
    channel_axis: int | None = 2
    scale: float = 1.0
    views: tuple[View, ...] = ()

    def __call__(self, frames: NDArray) -> NDArray:
        """Stored frames [N, *stored.shape] -> [N, *key.shape], perhaps a view of the same memory.

        Raises:
            FlowleapError: shape, dtype or numbers are others than in the frames that were looked at; the message does
                not name the column.
        """
        if frames.shape[1:] != self.stored.shape or frames.dtype.kind != np.dtype(self.stored.dtype).kind:
            found, expected = f"{frames.shape[1:]} {frames.dtype}", f"{self.stored.shape} {self.stored.dtype}"
            raise FlowleapError(f"holds images {found}, but {expected} in the episodes before: write one")
        images = _channels_last(frames, self.channel_axis)
        if self.key.kind == "depth":
            images = _depth(images)
        else:
            images = _to_uint8(images[..., :3], self.scale)
            images = np.broadcast_to(images, (*images.shape[:-1], 3))
        for view in self.views:
            images = view(images)
        return images

    def summary(self) -> str | None:
        """How the images lie and are read, for people; None where nothing changes."""
        if self.stored.shape == self.key.shape and self.stored.dtype == self.key.dtype:
            return None
        scaled = f" times {self.scale:g}" if self.scale != 1 else ""
        return f"{list(self.stored.shape)} {self.stored.dtype}{scaled}, read as {self.key.summary()} ({self.key.kind})"


def recognise(name: str, column: ObsKey, sample: Callable[[], NDArray]) -> Picture | str | None:
    """Tell how a column holds images.

    Args:
        name: the column's; one that says `depth` holds depth whatever its numbers.
        column: shape and dtype of a frame as it lies.
        sample: reads a few frames [n, *shape]; only asked where shape and dtype do not decide.

    Returns:
        What reads the images; a text that says why it holds none although it has their shape; None for other shapes.
    """
    shape, dtype = tuple(column.shape), np.dtype(column.dtype)
    place = _place(shape)
    if place is None or dtype.kind not in "biuf" or column.kind == "depth":  # told by the format
        return None
    axis, channels, (height, width) = place
    rgb = Picture(column, ObsKey((height, width, 3), "uint8", "rgb"), axis)
    if channels == 4 and "rgbd" in name.lower():
        return "colours and depth in one array: store them apart"
    if dtype in (np.uint8, np.bool_):
        return rgb if dtype == np.uint8 else replace(rgb, scale=255.0)
    values = _channels_last(sample(), axis)[..., :3]
    values = values[np.isfinite(values)].astype(np.float64)
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if channels == 1 and ("depth" in name.lower() or dtype == np.uint16 or not _is_grey(values, dtype)):
        return _depth_picture(column, axis, (height, width), low, high)
    if low < -255 * _ROUNDING or high > 255 * (1 + _ROUNDING) or (low < -_ROUNDING and high <= 1):
        return f"numbers from {low:.4g} to {high:.4g}, where images hold 0 to 1 or 0 to 255"
    in_shares = dtype.kind == "f" and high <= 1 + _ROUNDING
    return replace(rgb, scale=255.0 if in_shares else 1.0)


def too_many(column: ObsKey) -> str | None:
    """Why a column that is no image cannot be a plain input of a network, either; None where it can."""
    shape = tuple(column.shape)
    if column.dense or column.size <= MANY or (len(shape) < 2 and column.dtype != "uint8"):
        return None
    what = "bytes, perhaps packed images" if len(shape) == 1 else "numbers, neither an image nor a vector"
    if _cloud(column):
        what = "numbers, which points=[NAME] reads as a cloud of points"
    return f"{' x '.join(map(str, shape))} {what}"


def _cloud(column: ObsKey) -> bool:
    """Whether a column may hold points, xyz or xyz and rgb; only a Spec or a person can tell."""
    return len(column.shape) == 2 and column.shape[1] in (3, 6) and np.dtype(column.dtype).kind == "f"


def plain_inputs(columns: Mapping[str, ObsKey]) -> dict[str, str]:
    """What is observed as plain numbers although it is as large as an image: key -> what it is and what to do."""
    found: dict[str, str] = {}
    for key, column in columns.items():
        if too_many(column):
            remedy = (
                f"read points with points=[{key}]"
                if _cloud(column)
                else "record images with kind 'rgb' or 'depth'"
            )
            shape = " x ".join(map(str, column.shape))
            found[key] = (
                f"{shape} numbers a frame, read as plain numbers: {remedy}, or leave it out with keys=[-{key}]"
            )
    return found


def choose_views(columns: Mapping[str, ObsKey], resize: Any, crop: Any) -> dict[str, View]:
    """The views that the options `resize` and `crop` ask for: key -> view.

    Args:
        columns: what is observed.
        resize, crop: for all cameras, see `choose_view`; or a mapping from names (or patterns) to that.

    Raises:
        FlowleapError: an option does not fit, or names what is no image.
    """
    images = [key for key, column in columns.items() if column.image]
    wanted: dict[str, dict[str, Any]] = {}
    for option, value in (("resize", resize), ("crop", crop)):
        if value is None:
            continue
        for pattern, one in (value if isinstance(value, Mapping) else {"*": value}).items():
            keys = fnmatch.filter(images, str(pattern))
            if not keys:
                known = f"only {', '.join(images)}{suggest(str(pattern), images)}" if images else "no images"
                raise FlowleapError(f"{option}: there is no camera '{pattern}', {known}")
            for key in keys:
                wanted.setdefault(key, {})[option] = one
    views: dict[str, View] = {}
    for key, options in wanted.items():
        height, width = columns[key].shape[:2]
        try:
            views[key] = choose_view((height, width), options.get("resize"), options.get("crop"))
        except FlowleapError as error:
            raise FlowleapError(f"camera '{key}': {error}") from error
    return views


def _place(shape: Sequence[int]) -> tuple[int | None, int, tuple[int, int]] | None:
    """Axis and number of the channels, and height and width, of a frame that has the shape of an image."""
    if len(shape) == 2:
        axis, channels, sides = None, 1, (shape[0], shape[1])
        fits = max(sides) <= _LONGEST * min(sides)
    elif len(shape) == 3 and shape[2] in (1, 3, 4):
        axis, channels, sides, fits = 2, shape[2], (shape[0], shape[1]), True
    elif len(shape) == 3 and shape[0] in (1, 3, 4):
        axis, channels, sides, fits = 0, shape[0], (shape[1], shape[2]), True
    else:
        return None
    return (axis, channels, sides) if fits and min(sides) >= _MIN_SIDE else None


def _channels_last(frames: NDArray, axis: int | None) -> NDArray:
    """Frames [N, ...] as [N, H, W, C]."""
    return frames[..., None] if axis is None else np.moveaxis(frames, axis + 1, -1)


def _is_grey(values: NDArray, dtype: np.dtype) -> bool:
    """Whether numbers of one channel are brightness, from 0 to 1 or whole ones to 255; else they are distances."""
    if values.min(initial=0) < 0:
        return False
    high = values.max(initial=0)
    return bool(
        (dtype.kind == "f" and high <= 1) or (high <= 255 and np.array_equal(values, np.rint(values)))
    )


def _depth_picture(
    column: ObsKey, axis: int | None, size: tuple[int, int], low: float, high: float
) -> Picture | str:
    if low < 0:
        return f"one channel of numbers from {low:.4g} to {high:.4g}, where depth is 0 or more"
    # uint16 is what depth cameras give, in mm; floats are metres unless they are larger than any room.
    unit = "mm" if np.dtype(column.dtype).kind in "iu" or high > 100 else "m"
    return Picture(column, ObsKey((*size, 1), "float32", "depth", unit, (0.0, high or 1.0)), axis)


def _depth(images: NDArray) -> NDArray[np.float32]:
    """Distances as float32; 0 where nothing was measured, for which cameras also say NaN or infinity."""
    depth = np.nan_to_num(images.astype(np.float32), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    if (low := depth.min(initial=0)) < 0:
        raise FlowleapError(f"holds depth of {low:.4g}, below 0")
    return depth


def _to_uint8(images: NDArray, scale: float) -> NDArray[np.uint8]:
    """Round numbers times `scale`; raise unless that is 0 to 255."""
    if images.dtype == np.uint8:
        return images
    levels = images.astype(np.float32) * np.float32(scale)
    low, high = levels.min(initial=255), levels.max(initial=0)
    if not np.isfinite(low + high):
        raise FlowleapError("holds images with NaN or infinite numbers")
    if not (low >= -255 * _ROUNDING and high <= 255 * (1 + _ROUNDING)):
        found = f"{low / scale:.4g} to {high / scale:.4g}"
        raise FlowleapError(f"holds images with numbers from {found}, not 0 to {255 / scale:g}")
    return np.rint(levels).clip(0, 255).astype(np.uint8)
