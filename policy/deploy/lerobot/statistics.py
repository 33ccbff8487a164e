"""A dataset's statistics as data that have them: our normaliser is fitted from what LeRobot knows of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowleap.lerobot.features import ACTION
from flowleap.policy.core.errors import FlowleapError

# Two numbers have these quantiles .01 and .99 if they lie this much further apart.
_WITHIN = 0.98


def columns_of(
    modes: Mapping[str, str], names: Mapping[str, str], stats: Mapping[str, Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Two rows [2, *shape] for each key that is normalised, with the dataset's range, deviation or quantiles.

    Args:
        modes: key -> the normaliser's mode, `action` among them.
        names: key -> LeRobot's name.
        stats: name -> `min`, `max`, `mean`, `std`, and `q01` and `q99` in newer datasets.

    Raises:
        FlowleapError: a statistic is missing; the message names it.
    """
    columns: dict[str, np.ndarray] = {}
    for key, mode in modes.items():
        name = ACTION if key == ACTION else names[key]
        known = stats.get(name, {})
        wanted = {"gaussian": ("mean", "std"), "quantile": ("q01", "q99")}.get(mode, ("min", "max"))
        if missing := [entry for entry in wanted if entry not in known]:
            raise FlowleapError(
                f"the dataset's statistics have no {' and '.join(missing)} of '{name}'; lerobot's "
                "augment_dataset_quantile_stats.py adds quantiles"
            )
        first, second = (np.asarray(known[entry], np.float64) for entry in wanted)
        if mode == "gaussian":
            first, second = first - second, first + second
        elif mode == "quantile":
            centre, spread = (first + second) / 2, (second - first) / (2 * _WITHIN)
            first, second = centre - spread, centre + spread
        columns[key] = np.stack([first, second])
    return columns
