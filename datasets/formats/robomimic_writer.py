"""Writing a robomimic HDF5 file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from flowleap.datasets.columns import ACTION, Layout, plain
from flowleap.datasets.target import Target
from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.spec import ObsKey, Spec

ACTIONS = "actions"
MASKS = "masks"  # attribute of a store: name of a filter -> indices of its episodes
NOTE = "flowleap"  # dataset with JSON as bytes: an HDF5 attribute could not hold more than 64 KiB
_MAGIC = b"\x89HDF\r\n\x1a\n"
_GYM = 2  # robomimic's EnvType


class RobomimicWriter:
    """Context manager that writes a robomimic file, which appears when it is complete.

    Args:
        path: the new file.
        spec: observation keys, shapes and dtypes, and the action dimension. `source["env_args"]`, if it is there,
            becomes the file's `env_args`.
        attrs: kept beside the Spec; `masks` (name -> episode indices) become `mask/<name>`.
        overwrite: replace an existing HDF5 file, once the new one is complete.
        extra: columns that are no observations, written beside `actions`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: Spec,
        attrs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        extra: Mapping[str, ObsKey] | None = None,
    ) -> None:
        self._h5 = optional_import("h5py", extra="formats")
        self.spec = spec
        self.attrs = dict(attrs or {})
        self._extra = dict(extra or {})
        self._layout = Layout(spec, extra)
        for key in self._layout.columns:
            if key not in spec.observations and key in ("obs", "next_obs", ACTIONS):
                raise FlowleapError(f"a robomimic file cannot hold a column '{key}' beside the observations")
        self._target = Target(path, overwrite, "HDF5 file", is_hdf5)
        self.path = self._target.path
        self.n_episodes = 0
        self.n_frames = 0

    def add(self, episode: Mapping[str, ArrayLike], seed: int | None = None) -> None:
        """Append one episode: key -> [T, *shape], equal T >= 1 for every key of the Spec and `action`."""
        columns = self._layout.fit(episode, f"episode {self.n_episodes}")
        with self._target.errors():
            group = self._data.create_group(f"demo_{self.n_episodes}")
            for key, values in columns.items():
                name = f"obs/{key}" if key in self.spec.observations else key
                group.create_dataset(ACTIONS if key == ACTION else name, data=values)
            length = len(columns[ACTION])
            group.attrs["num_samples"] = length
            if seed is not None:
                group.attrs["seed"] = seed
        self.n_episodes += 1
        self.n_frames += length

    def __enter__(self) -> Self:
        with self._target.errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._h5.File(self._target.temporary, "w")
            self._data = self._file.create_group("data")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._target.errors():
                if kind is None:
                    self._finish()
                self._file.close()
            if kind is None:
                self._target.publish()
        finally:
            self._target.discard()

    def _finish(self) -> None:
        if not self.n_episodes:
            raise FlowleapError(f"no episode was added, '{self.path}' is not written")
        self._data.attrs["total"] = self.n_frames
        default = {"env_name": self.spec.source.get("env", "unknown"), "type": _GYM, "env_kwargs": {}}
        self._data.attrs["env_args"] = json.dumps(self.spec.source.get("env_args") or default, default=plain)
        for name, episodes in self.attrs.get(MASKS, {}).items():
            demos = np.array([f"demo_{i}" for i in episodes], dtype="S")
            self._file.create_dataset(f"mask/{name}", data=demos)
        note = {
            "spec": self.spec.to_dict(),
            "extra": {key: [list(column.shape), column.dtype] for key, column in self._extra.items()},
            "attrs": {key: value for key, value in self.attrs.items() if key != MASKS},
        }
        text = json.dumps(note, default=plain).encode()
        self._file.create_dataset(NOTE, data=np.frombuffer(text, dtype=np.uint8))


def is_hdf5(path: Path) -> bool:
    """Whether a path is a file with the signature, or at least a suffix, of HDF5."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC or path.suffix in (".hdf5", ".h5")
