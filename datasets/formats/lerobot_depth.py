"""Depth of LeRobotDatasets: images of 16 bits, and videos whose 12-bit codes stand for distances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError

_CODES = 4096  # of 12 bits
PIXELS = "gray12le"


class DepthCodes(NamedTuple):
    """How codes of a video become metres: those from 1 to 4095 lie between `low` and `high`, 0 is not measured.

    Attributes:
        low, high: metres of the first and the last code.
        shift: metres that are added before the logarithm.
        logarithmic: steps are equal in the logarithm, which suits cameras whose error grows with the distance.
    """

    low: float
    high: float
    shift: float
    logarithmic: bool

    def metres(self, codes: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Codes -> metres, of the same shape; 0 where nothing was measured."""
        share = np.arange(_CODES) / (_CODES - 1)
        if self.logarithmic:
            ends = np.log(self.low + self.shift), np.log(self.high + self.shift)
            table = np.exp(ends[0] + share * (ends[1] - ends[0])) - self.shift
        else:
            table = self.low + share * (self.high - self.low)
        table[0] = 0.0
        return table.astype(np.float32)[codes]


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a feature of info.json says that it is depth."""
    about = _about(feature)
    return bool(
        about.get("is_depth_map") or about.get("video.is_depth_map") or feature.get("dtype") == "depth"
    )


def depth_codes(feature: Mapping[str, Any]) -> DepthCodes:
    """How a video of depth is read.

    Raises:
        FlowleapError: its feature does not say so; the message does not name it.
    """
    about = _about(feature)
    names = ("video.depth_min", "video.depth_max", "video.shift")
    try:
        low, high, shift = (float(about[name]) for name in names)
        codes = DepthCodes(low, high, shift, bool(about["video.use_log"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FlowleapError(
            "a video of depth without video.depth_min, depth_max, shift and use_log in meta/info.json, which say "
            "what its numbers mean"
        ) from error
    if not (
        0 <= low < high < math.inf and math.isfinite(shift) and (low + shift > 0 or not codes.logarithmic)
    ):
        raise FlowleapError(f"a video of depth whose codes mean nothing: {codes}")
    return codes


def _about(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    about = feature.get("info") or feature.get("video_info") or {}
    return about if isinstance(about, Mapping) else {}
