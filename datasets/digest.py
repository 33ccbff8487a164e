"""What a run was trained on, in short texts: whether a dataset holds the same numbers, and if not, what differs.

The numbers count, not the file: a dataset that was moved, renamed or converted to another format keeps its digest. It
covers every value of the low-dim columns and the actions, as float32, which is what a policy sees; where the episodes
end; and of images their number and size and the pixels of 32 frames, spread evenly from first to last, because reading
all of them would take as long as training on them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flowleap.datasets.columns import Columns

_FRAMES = 32  # of each image column
_BLOCK = 2**20  # numbers that are hashed at a time


def digest(columns: Columns, episode_ends: ArrayLike) -> dict[str, Any]:
    """The digest of columns [N, *shape] (arrays or `Frames`) and episode ends [E]; JSON values only."""
    ends = np.asarray(episode_ends, "<i8")
    return {
        "episodes": len(ends),
        "frames": int(ends[-1]),
        "episode_ends": hashlib.blake2b(ends.tobytes(), digest_size=16).hexdigest(),
        "columns": {key: _column(column) for key, column in sorted(columns.items())},
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How a digest differs from one that was stored, in words; nothing where the data are the same.

    What `before` lacks is not compared: runs of flowleap 0.1 know no more than `episodes` and `frames`.
    """
    counts = [n for n in ("episodes", "frames") if n in before and before[n] != now[n]]
    found = [f"{now[n]} {n} instead of {before[n]}" for n in counts]
    if not found and before.get("episode_ends", now["episode_ends"]) != now["episode_ends"]:
        found.append("episodes of other lengths")
    old, new = before.get("columns"), now["columns"]
    if isinstance(old, dict):
        parts = {
            "no column": [key for key in old if key not in new],
            "a new column": [key for key in new if key not in old],
            "other numbers in": [key for key in new if old.get(key, new[key]) != new[key]],
        }
        found += [f"{what} {', '.join(map(repr, keys))}" for what, keys in parts.items() if keys]
    return found


def _column(column: Any) -> str:
    """The digest of one column: its shape and its numbers as float32, for images those of some frames."""
    count, *frame = column.shape
    images = not isinstance(column, np.ndarray) or (column.dtype == np.uint8 and len(frame) == 3)
    rows = np.unique(np.linspace(0, count - 1, _FRAMES).astype(int)) if images else np.arange(count)
    hashed = hashlib.blake2b(repr(tuple(map(int, column.shape))).encode(), digest_size=16)
    step = max(1, _BLOCK // max(1, math.prod(frame)))
    for start in range(0, len(rows), step):
        values = column.take(rows[start : start + step], axis=0)
        hashed.update(values.astype("<f4").tobytes())
    return hashed.hexdigest()
