"""Whether the rows of an episode are in order, by what counts or times them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.spec import ObsKey

TIMES = ("timestamp", "timestamps", "time", "time_stamp")
_COUNTS: tuple[str, ...] = (
    "frame_index",
    "frame_idx",
    "frame_id",
    "frame",
    "step_index",
    "step_idx",
    "step_id",
    "step",
    "steps",
)
_COUNTS += ("timestep", "timesteps", "time_step")
_COARSE = 0.5  # share of rows with a value of their own below which a clock does not tell rows apart


def first_of(names: tuple[str, ...], fields: Mapping[str, ObsKey]) -> str | None:
    """The first of some names that is a column of one number a frame."""
    return next((key for key in names if key in fields and fields[key].size == 1), None)


def ordering(fields: Mapping[str, ObsKey]) -> list[str]:
    """The columns whose values increase from row to row: a count of the frames, and time stamps."""
    found = (first_of(names, fields) for names in (_COUNTS, TIMES))
    return [key for key in found if key is not None]


def problem(values: NDArray) -> str | None:
    """What is wrong with a column [T, ...] that should increase, for a message after its name; None if nothing is.

    A clock that ticks more slowly than the frames come (whole seconds, UNIX time as float32) is only asked whether it
    goes back.
    """
    exact = values.reshape(-1)
    back, same = exact[1:] < exact[:-1], exact[1:] == exact[:-1]
    if back.any():
        row = int(np.argmax(back)) + 1
        return f"goes back from {exact[row - 1]} to {exact[row]} at frame {row}: the rows are out of order"
    if same.any() and len(np.unique(exact)) > _COARSE * len(exact):
        row = int(np.argmax(same)) + 1
        return f"is {exact[row]} at frames {row - 1} and {row}: a row is there twice"
    return None
