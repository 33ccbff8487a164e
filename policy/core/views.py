"""What a policy sees of a camera: a part of the frame, made smaller. Plain numpy and Pillow, no torch.

Training, `Policy.act` and exported policies make views with this one function, so that they see the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError

_MAX_SIDE = 2**14
_MAX_VIEWS = 8


@dataclass(frozen=True)
class View:
    """A crop of images and its new size.

    Attributes:
        size: (height, width) of the images that come in, px.
        crop: (top, left, height, width) of the part that is kept, px.
        resize: (height, width) that this part gets. Colours are averaged over the area of each new pixel where the
            sides divide, and by an antialiasing filter of about that width where they do not. Of depth, whose average
            over an edge would be a place where nothing is, the nearest pixel is taken.

    Raises:
        FlowleapError: a side is no whole number from 1 to 16384, or the crop is not inside of the image.
    """

    size: tuple[int, int]
    crop: tuple[int, int, int, int]
    resize: tuple[int, int]

    def __post_init__(self) -> None:
        for name, count in (("size", 2), ("crop", 4), ("resize", 2)):
            numbers = getattr(self, name)
            whole = len(numbers) == count and all(type(n) is int and 0 <= n <= _MAX_SIDE for n in numbers)
            if not whole or min(numbers[-2:]) < 1:
                raise FlowleapError(f"{name}={list(numbers)} is no {count} sides of an image in px")
            object.__setattr__(self, name, tuple(numbers))
        top, left, height, width = self.crop
        if top + height > self.size[0] or left + width > self.size[1]:
            raise FlowleapError(f"crop={list(self.crop)} is not inside of images of {list(self.size)} px")

    def __call__(self, images: NDArray[Any]) -> NDArray[Any]:
        """uint8 [..., *size, 3] or float32 [..., *size, 1] -> the same dtype, [..., *resize, channels]."""
        top, left, height, width = self.crop
        cut = images[..., top : top + height, left : left + width, :]
        if self.resize == (height, width):
            return cut
        frames = cut.reshape(-1, height, width, cut.shape[-1])
        if cut.dtype == np.uint8:
            frames = self._averaged(frames)
        else:
            rows, columns = (
                ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
                for new, old in zip(self.resize, (height, width), strict=True)
            )
            frames = frames[:, rows[:, None], columns]
        return frames.reshape(*cut.shape[:-3], *self.resize, cut.shape[-1])

    def _averaged(self, frames: NDArray[Any]) -> NDArray[np.uint8]:
        from PIL import Image

        height, width = self.resize
        whole = frames.shape[1] % height == 0 and frames.shape[2] % width == 0
        # Pillow's box is an exact average for whole factors alone; its bilinear filter widens where an image shrinks.
        way = Image.Resampling.BOX if whole else Image.Resampling.BILINEAR
        small = np.empty((len(frames), height, width, 3), np.uint8)
        for i, frame in enumerate(frames):
            small[i] = np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), way))
        return small

    @classmethod
    def from_dict(cls, data: Any) -> View:
        """Build from untrusted plain data; raise `FlowleapError`, `TypeError` or `KeyError` where it is none."""
        return cls(tuple(data["size"]), tuple(data["crop"]), tuple(data["resize"]))


def views_from(data: Any) -> tuple[View, ...]:
    """The views of an image, one after the other, from untrusted plain data."""
    if not isinstance(data, Sequence) or len(data) > _MAX_VIEWS:
        raise FlowleapError(f"{data!r:.80} is no list of views")
    return tuple(map(View.from_dict, data))


def choose_view(size: tuple[int, int], resize: Any, crop: Any) -> View:
    """The view that options ask for of images of a size (height, width).

    Args:
        size: of the images, px.
        resize: [height, width], or None.
        crop: [top, left, height, width], [height, width] around the centre, `centre` (the largest part around it that
            has the shape of `resize`, or is a square), or None.

    Raises:
        FlowleapError: the options are none of these, or do not fit the size.
    """
    if resize is not None and not _sides(resize, 2):
        raise FlowleapError(f"resize={resize} must be [height, width] in px, such as resize=[120,160]")
    if crop in ("centre", "center"):
        high, wide = resize or (1, 1)
        scale = min(size[0] / high, size[1] / wide)
        crop = [min(size[0], max(1, round(high * scale))), min(size[1], max(1, round(wide * scale)))]
    if crop is None:
        crop = [0, 0, *size]
    elif _sides(crop, 2):
        crop = [(size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2, *crop]
    if not _sides(crop, 4):
        given = "[top, left, height, width] inside of it, [height, width] or centre"
        raise FlowleapError(f"crop={crop} of images of {list(size)} px must be {given}")
    return View(size, tuple(crop), tuple(resize or crop[2:]))


def _sides(value: Any, count: int) -> bool:
    """Whether an option is a list of so many whole numbers."""
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count
    return listed and all(type(n) is int and n >= 0 for n in value)


def smaller(size: tuple[int, int], side: int = 160) -> list[int]:
    """A size to advise: halved until no side is longer than `side` px."""
    halvings = max(0, math.ceil(math.log2(max(size) / side)))
    return [max(1, n >> halvings) for n in size]
