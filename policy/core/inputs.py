"""What a policy may be fed: finite numbers, not far from those that it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError

Unusual = Literal["warn", "stop", "ignore"]
"""What is done about observations far outside of the range of training."""

Range = tuple[NDArray, NDArray]
FAR = 3.0  # of normalised numbers: beyond the range by as much again on either side


class InputCheck:
    """Looks at observations before a policy acts on them.

    Args:
        range_of: gives the normalisation of a low-dim key, (scale, offset), each [*shape], or None where none is
            known; asked at each call, as a policy may be fitted later.
        unusual: what to do about numbers far outside of the range of training; a key is warned about once.

    Raises:
        FlowleapError: `unusual` is none of warn, stop, ignore.
    """

    def __init__(self, range_of: Callable[[str], Range | None], unusual: Unusual = "warn") -> None:
        if unusual not in get_args(Unusual):
            raise FlowleapError(f"unusual={unusual!r} is none of {', '.join(get_args(Unusual))}")
        self.range_of, self.unusual = range_of, unusual
        self._warned: set[str] = set()

    def __call__(self, key: str, values: NDArray) -> None:
        """Look at the values [B, To, *shape] of a low-dim key.

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
        beyond = np.abs(values * scale + offset)
        if beyond.max(initial=0) <= FAR:
            return
        place = tuple(int(i) for i in np.unravel_index(int(beyond.argmax()), beyond.shape))
        centre, spread = -offset[place[2:]] / scale[place[2:]], 1 / scale[place[2:]]
        where = f" dimension {', '.join(map(str, place[2:]))}" if place[2:] else ""
        message = (
            f"observation '{key}'{where} is {values[place]:.4g}, far outside of the {centre - spread:.4g} to "
            f"{centre + spread:.4g} of training: check its unit, its frame and its sensor"
        )
        if self.unusual == "stop":
            raise FlowleapError(message)
        self._warned.add(key)
        warnings.warn(message, stacklevel=3)
