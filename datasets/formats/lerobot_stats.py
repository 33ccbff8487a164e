"""The statistics that LeRobot keeps: minimum, maximum, mean, deviation and count, of each episode and of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Statistics:
    """Running statistics of features. Those of images are per channel, of values from 0 to 1, shaped [3, 1, 1]."""

    def __init__(self) -> None:
        self._total: dict[str, dict[str, NDArray]] = {}
        self._images: set[str] = set()

    def add(self, columns: Mapping[str, tuple[NDArray, bool]]) -> dict[str, Any]:
        """Take one episode, feature -> ([T, *shape], whether it is an image); return its row of meta/episodes."""
        row: dict[str, Any] = {}
        self._images |= {name for name, (_, image) in columns.items() if image}
        for name, (values, image) in columns.items():
            one = _describe(values, image)
            self._total[name] = _merge(self._total[name], one) if name in self._total else one
            row |= {f"stats/{name}/{field}": value for field, value in _show(one, image).items()}
        return row

    def total(self) -> dict[str, dict[str, Any]]:
        """Feature -> statistic -> nested lists, over all episodes."""
        return {name: _show(one, name in self._images) for name, one in self._total.items()}


def _describe(values: NDArray, image: bool) -> dict[str, NDArray]:
    """Statistics over frames (images: over frames and pixels), in float64, with the sum of squared deviations."""
    axes: tuple[int, ...] = (0, 1, 2) if image else (0,)
    x = values.astype(np.float64) / (255.0 if image else 1.0)
    if x.ndim == 1:
        x = x[:, None]
    mean, count = x.mean(axis=axes), np.array([len(x)])
    low, high, squares = x.min(axis=axes), x.max(axis=axes), np.square(x - mean).mean(axis=axes) * count
    return {"min": low, "max": high, "mean": mean, "squares": squares, "count": count}


def _merge(a: dict[str, NDArray], b: dict[str, NDArray]) -> dict[str, NDArray]:
    """Chan's update of mean and squared deviations."""
    count = a["count"] + b["count"]
    shift = b["mean"] - a["mean"]
    low, high = np.minimum(a["min"], b["min"]), np.maximum(a["max"], b["max"])
    mean = a["mean"] + shift * b["count"] / count
    squares = a["squares"] + b["squares"] + shift**2 * a["count"] * b["count"] / count
    return {"min": low, "max": high, "mean": mean, "squares": squares, "count": count}


def _show(one: dict[str, NDArray], image: bool) -> dict[str, Any]:
    shown = {name: one[name] for name in ("min", "max", "mean")}
    shown["std"] = np.sqrt(one["squares"] / one["count"])
    if image:
        shown = {name: value[:, None, None] for name, value in shown.items()}
    return {name: value.tolist() for name, value in shown.items()} | {"count": one["count"].tolist()}
