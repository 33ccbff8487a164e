"""D4RL HDF5: flat observations, actions, terminals, timeouts, rewards, infos/*; episodes end at terminals or timeouts

The frames behind the last end are an episode too. `next_observations` is left out: it is `observations`, one frame
later, and so is `metadata`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.formats.hdf5 import Hdf5Episodes, holds, is_array
from flowleap.policy.core.errors import FlowleapError

_ACTIONS = "actions"
_ENDS = ("terminals", "timeouts", "terminations", "truncations", "dones")


def detect(path: Path) -> bool:
    """A file with observations, actions and ends at its root."""
    return holds(path, _is_flat)


class Reader(Hdf5Episodes):
    """A D4RL file, cut into episodes.

    Args:
        path: the file.
    """

    observed = ("observations/",)
    ignored = ("next_observations", "metadata/")

    def __init__(self, path: Path) -> None:
        super().__init__(path, path, "actions")
        self._bounds = np.append(0, self._cut())
        self.n_episodes, self._ends = len(self._bounds) - 1, self._bounds[1:]
        self._infer()

    def _place(self, index: int) -> tuple[Any, int, int]:
        first, last = self._bounds[index : index + 2].tolist()
        return self._file, first, last

    def _cut(self) -> NDArray[np.int64]:
        """The frame after each episode's last one."""
        flags = [name for name in _ENDS if is_array(self._file.get(name))]
        n = len(self._require_dataset(self._file, self._actions[0]))
        last = np.zeros(n, bool)
        for name in flags:
            ends = self._rows(self._require_dataset(self._file, name)).reshape(-1)
            if ends.shape != last.shape or ends.dtype.kind not in "biuf":
                raise FlowleapError(f"'{self.path}': {name} has {len(ends)} values for {n} actions")
            last |= ends.astype(bool)
        if not last.any():
            line = (
                f"import h5py, numpy as np; f = h5py.File({str(self.path)!r}, 'a'); n = len(f['{self._actions[0]}']); "
                "f.pop('timeouts', None); f['timeouts'] = np.isin(np.arange(n), [n - 1])"
            )
            raise FlowleapError(
                f"'{self.path}': no frame of {', '.join(flags)} is true, so where do episodes end? Mark their last "
                f'frames, here as one episode: python -c "{line}"'
            )
        ends = np.flatnonzero(last) + 1
        return ends if ends[-1] == n else np.append(ends, n)


def _is_flat(file: Any) -> bool:
    ends = any(is_array(file.get(name)) for name in _ENDS)
    return ends and is_array(file.get(_ACTIONS)) and "observations" in file
