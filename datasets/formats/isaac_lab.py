"""Isaac Lab HDF5: data/demo_*/{obs/*, actions, initial_state/*, states/*}; obs may be one dataset or nested groups

robomimic's layout, but for the states of the simulator, which are groups: `states` has a row a frame and becomes extra
columns, `initial_state` has one row an episode and is left out. What Isaac Lab Mimic needs to make more data
(`obs/datagen_info`) is an extra column too: no policy meets it. `filter=success` reads the demonstrations whose
attribute `success` is true.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowleap.datasets.formats import robomimic
from flowleap.datasets.formats.hdf5 import holds, is_array, is_group, positive
from flowleap.policy.core.spec import ActionConvention

_SUCCESS = "success"


def detect(path: Path) -> bool:
    """An HDF5 file of demonstrations whose states are groups, or whose observations are one dataset."""
    return holds(path, _is_isaac)


class Reader(robomimic.Reader):
    """An Isaac Lab file; see robomimic's `Reader` for the arguments."""

    def _is_observed(self, path: str) -> bool:
        return super()._is_observed(path) and not path.startswith("obs/datagen_info/")

    def _no_observations(self) -> str:
        there = sorted(str(name) for name in self._group(0))
        return (
            f"has no observations in 'obs', only {there}: record them, with record_pre_step_flat_policy_observations "
            "of Isaac Lab's ActionStateRecorderManagerCfg"
        )

    def _filters(self) -> dict[str, list[str]]:
        """Those of `mask/`, and the demonstrations that succeeded, where the file says so."""
        found = super()._filters()
        said = {name: demo.attrs.get(_SUCCESS) for name, demo in self._data.items() if is_group(demo)}
        if any(success is not None for success in said.values()):
            found.setdefault(_SUCCESS, [str(name) for name, success in said.items() if success])
        return found

    def _facts(self, env_args: Mapping[str, Any]) -> tuple[float, ActionConvention]:
        """Rate and convention: `IK-Rel` in the environment's name says that actions are displacements."""
        sim = env_args.get("sim_args")
        period = positive(sim.get("dt")) * positive(sim.get("decimation")) if isinstance(sim, dict) else 0.0
        relative = "-Rel" in str(env_args.get("env_name"))
        return 1 / period if period else 0.0, "delta" if relative else "absolute"


def _is_isaac(file: Any) -> bool:
    data: Any = file.get("data")
    demo: Any = data.get(next(iter(data))) if is_group(data) and len(data) else None
    if not is_group(demo) or robomimic.NOTE in file:
        return False
    return any(is_group(demo.get(name)) for name in ("initial_state", "states")) or is_array(demo.get("obs"))
