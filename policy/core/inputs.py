"""What a policy may be fed: finite numbers, not far from those that it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, FlowleapWarning
from flowleap.policy.core.spec import ObsKey

Unusual = Literal["warn", "stop", "ignore"]
"""What is done about observations far outside of the range of training."""

Range = tuple[NDArray[Any], NDArray[Any]]
FAR = 3.0  # of normalised numbers: beyond the range by as much again on either side


def input_advice(known: ObsKey, shape: Sequence[int], dtype: str) -> str:
    """What to do about images or points of a wrong shape or dtype, to end a message with; empty where nothing."""
    if known.kind == "points" and len(shape) > 1:
        return _points_advice(known, shape[-2], shape[-1])
    if not known.image:
        return ""
    sizes, shape = (known.shape[:2], known.camera_shape[:2]), tuple(shape)
    advice: list[str] = []
    if shape[-3:-2] in ((1,), (3,), (4,)) and shape[-2:] in sizes:
        advice.append("put the channels last with np.moveaxis(images, -3, -1)")
    elif shape[-2:] in sizes:
        advice.append("add the axis of channels with images[..., None]")
    elif shape[-3:-1] not in sizes:
        wanted = " or ".join(dict.fromkeys(f"{height} x {width}" for height, width in sizes))
        advice.append(f"give images of {wanted} px")
    if known.kind == "rgb":
        if shape[-1:] == (4,) or (shape[-3:-2] == (4,) and shape[-2:] in sizes):
            advice.append("leave out the fourth channel with images[..., :3]")
        if shape[-1:] == (1,) or (shape[-2:] in sizes and shape[-3:-2] not in ((3,), (4,))):
            advice.append("repeat a grey channel with np.repeat(images, 3, axis=-1)")
        if "float" in dtype:
            advice.append("make floats from 0 to 1 bytes with (255 * images).round().astype(np.uint8)")
    return "; " + ", then ".join(advice) if advice else ""


def _points_advice(known: ObsKey, count: int, channels: int) -> str:
    wanted, wide = known.shape
    if (channels, count) == (wanted, wide):
        return "; put the channels last with np.moveaxis(points, -2, -1)"
    advice: list[str] = []
    if channels > wide:
        advice.append(f"keep the first {wide} channels with points[..., :{wide}]")
    if count != wanted:
        advice.append(
            f"choose {wanted} of the points, as in training (farthest point sampling, for instance)"
        )
    return "; " + ", then ".join(advice) if advice else ""


class InputCheck:
    """Looks at observations before a policy acts on them.

    Args:
        range_of: gives the normalisation of a low-dim key or of points, (scale, offset), each [*shape], of points
            [channels], or None where none is known; asked at each call, as a policy may be fitted later.
        unusual: what to do about numbers far outside of the range of training; a key is warned about once.

    Raises:
        FlowleapError: `unusual` is none of warn, stop, ignore.
    """

    def __init__(self, range_of: Callable[[str], Range | None], unusual: Unusual = "warn") -> None:
        if unusual not in get_args(Unusual):
            raise FlowleapError(f"unusual={unusual!r} is none of {', '.join(get_args(Unusual))}")
        self.range_of, self.unusual = range_of, unusual
        self._warned: set[str] = set()

    def __call__(self, key: str, values: NDArray[Any]) -> None:
        """Look at the values [B, To, *shape] of a low-dim key, or of points.

        Raises:
            FlowleapError: a number is NaN or infinite, or lies far outside and `unusual` is `stop`.
        """
        if not np.isfinite(values).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise FlowleapError(
                f"observation '{key}' is {values[place]} at index {list(place)} of {list(values.shape)} "
                "([batch, step, ...]): no action is chosen from it; check the sensor"
            )
        known = self.range_of(key)
        if known is None or self.unusual == "ignore" or (key in self._warned and self.unusual == "warn"):
            return
        scale, offset = known
        if values.shape[values.ndim - scale.ndim :] != scale.shape:
            return  # the caller looks at shapes
        beyond = np.abs(values * scale + offset)
        if beyond.max(initial=0) <= FAR:
            return
        place = tuple(int(i) for i in np.unravel_index(int(beyond.argmax()), beyond.shape))
        dimension = place[values.ndim - scale.ndim :]
        centre, spread = -offset[dimension] / scale[dimension], 1 / scale[dimension]
        where = f" dimension {', '.join(map(str, dimension))}" if dimension else ""
        message = (
            f"observation '{key}'{where} is {values[place]:.4g}, far outside of the {centre - spread:.4g} to "
            f"{centre + spread:.4g} of training: check its unit, its frame and its sensor"
        )
        if self.unusual == "stop":
            raise FlowleapError(message)
        self._warned.add(key)
        warnings.warn(message, FlowleapWarning, stacklevel=3)
