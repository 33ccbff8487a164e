"""ManiSkill HDF5: traj_*/{obs, actions, success, env_states/*}, with the .json beside it (control mode, seeds)

`obs` holds one observation more than actions, which is left out. `filter=success` reads the episodes that the .json
calls successful.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from flowleap.datasets.formats.base import explain, read_json
from flowleap.datasets.formats.hdf5 import Hdf5Episodes, by_number, holds, positive
from flowleap.datasets.selection import MASKS
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ActionConvention

_TRAJECTORY = re.compile(r"traj_([0-9]+)")


def detect(path: Path) -> bool:
    """An HDF5 file of trajectories."""
    return holds(path, lambda file: any(map(_TRAJECTORY.fullmatch, map(str, itertools.islice(file, 9)))))


class Reader(Hdf5Episodes):
    """A ManiSkill file; the columns are those of the first trajectory.

    Args:
        path: the file.
    """

    observed = ("obs/",)
    ahead = 1

    def __init__(self, path: Path) -> None:
        super().__init__(path, path, "actions")
        names = (name for name in self._file if _TRAJECTORY.fullmatch(self._text(name, "the file")))
        self._names = sorted(names, key=by_number)
        if not self._names:
            raise FlowleapError(f"'{path}' has no trajectories traj_0, ...")
        self.n_episodes = len(self._names)
        beside = path.with_suffix(".json")
        notes = read_json(beside) if beside.is_file() else {}
        with explain(f"'{beside}' is damaged", TypeError, AttributeError, KeyError, ValueError):
            self._episodes = {f"traj_{e['episode_id']}": e for e in notes.get("episodes", [])}
            info = dict(notes.get("env_info", {}))
            kwargs = dict(info.get("env_kwargs", {}))
            mode = str(kwargs.get("control_mode", ""))
            rate = dict(kwargs.get("sim_config") or {}).get("control_freq", kwargs.get("control_freq"))
        convention: ActionConvention = "delta" if "delta" in mode else "absolute"
        source = {"env": info.get("env_id"), "env_kwargs": kwargs} if info else {}
        self._infer(control_hz=positive(rate), action_convention=convention, source=source)
        successes = [i for i, name in enumerate(self._names) if self._note(name).get("success")]
        if self._episodes:
            self.attrs[MASKS] = {"success": successes}

    def _note(self, name: str) -> dict[str, Any]:
        """What the .json says of a trajectory."""
        note = self._episodes.get(name)
        return note if isinstance(note, dict) else {}

    def _place(self, index: int) -> tuple[Any, int, int]:
        group = self._file.get(self._names[index])
        if not isinstance(group, self._h5.Group):
            raise FlowleapError(f"'{self.path}': {self._names[index]} is no group")
        with self.naming(index, self._actions[0]):
            return group, 0, len(self._require_dataset(group, self._actions[0]))

    def _no_observations(self) -> str:
        return (
            "has no observations in 'obs': write them with `python -m mani_skill.trajectory.replay_trajectory "
            f"--traj-path {self.path} --save-traj --obs-mode state --use-first-env-state`"
        )

    def label(self, index: int) -> str:
        """The name of the trajectory's group."""
        return self._names[index]

    def seed(self, index: int) -> int | None:
        """The seed of the episode's reset."""
        seed = self._note(self._names[index]).get("episode_seed")
        return seed if isinstance(seed, int) else None
