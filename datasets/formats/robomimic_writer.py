"""Writing a robomimic HDF5 file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from flowleap.datasets.columns import ACTION, Episode, plain
from flowleap.datasets.formats.base import Writer
from flowleap.policy.core.errors import FlowleapError, optional_import

ACTIONS = "actions"
MASKS = "masks"  # attribute of a store: name of a filter -> indices of its episodes
NOTE = "flowleap"  # dataset with JSON as bytes: an HDF5 attribute could not hold more than 64 KiB
_MAGIC = b"\x89HDF\r\n\x1a\n"
_GYM = 2  # robomimic's EnvType


def is_hdf5(path: Path) -> bool:
    """Whether a path is a file with the signature, or at least a suffix, of HDF5."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC or path.suffix in (".hdf5", ".h5")


class RobomimicWriter(Writer):
    """Writes a robomimic file; see `Writer` for the arguments.

    `spec.source["env_args"]`, if it is there, becomes the file's `env_args`, `attrs["masks"]` (name -> episode
    indices) become `mask/<name>`, and extra columns lie beside `actions`.
    """

    kind = "HDF5 file"
    is_kind = staticmethod(is_hdf5)

    def _prepare(self) -> None:
        self._h5 = optional_import("h5py", extra="formats")
        for key in self._layout.columns:
            if key not in self.spec.observations and key in ("obs", "next_obs", ACTIONS):
                raise FlowleapError(f"a robomimic file cannot hold a column '{key}' beside the observations")

    def _open(self) -> None:
        self._file = self._h5.File(self._target.temporary, "w")
        self._data = self._file.create_group("data")

    def _write(self, columns: Episode, length: int, seed: int | None) -> None:
        group = self._data.create_group(f"demo_{self.n_episodes}")
        for key, values in columns.items():
            name = f"obs/{key}" if key in self.spec.observations else key
            group.create_dataset(ACTIONS if key == ACTION else name, data=values)
        group.attrs["num_samples"] = length
        if seed is not None:
            group.attrs["seed"] = seed

    def _finish(self) -> None:
        self._data.attrs["total"] = self.n_frames
        default = {"env_name": self.spec.source.get("env", "unknown"), "type": _GYM, "env_kwargs": {}}
        self._data.attrs["env_args"] = json.dumps(self.spec.source.get("env_args") or default, default=plain)
        for name, episodes in self.attrs.get(MASKS, {}).items():
            demos = np.array([f"demo_{i}" for i in episodes], dtype="S")
            self._file.create_dataset(f"mask/{name}", data=demos)
        note = self._note() | {"attrs": {key: value for key, value in self.attrs.items() if key != MASKS}}
        text = json.dumps(note, default=plain).encode()
        self._file.create_dataset(NOTE, data=np.frombuffer(text, dtype=np.uint8))

    def _close(self) -> None:
        self._file.close()
