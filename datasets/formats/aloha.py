"""ALOHA and ACT HDF5: one file an episode with observations/{qpos, qvel, effort, images/*} and action

A folder of such files in the order of the numbers in their names, or one file. JPEG images, padded or not, are decoded
as every JPEG decoder shows them: where a recorder gave OpenCV frames in RGB, red and blue are swapped. The file knows
no rate: ALOHA records at 50 Hz.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowleap.datasets.formats.hdf5 import SUFFIXES, Hdf5Episodes, by_number, holds, is_array, is_group
from flowleap.policy.core.errors import FlowleapError

_ACTIONS = ("action", "actions")


def detect(path: Path) -> bool:
    """A file of the layout, or a folder whose first HDF5 file is one."""
    files = _files(path)
    return bool(files) and holds(files[0], _is_episode)


class Reader(Hdf5Episodes):
    """Episodes of ALOHA; the columns are those of the first.

    Args:
        path: file or folder.
    """

    observed = ("observations/images/", "observations/")
    ignored = ("compress_len",)  # the lengths of the JPEG files, which need none

    def __init__(self, path: Path) -> None:
        self._files = _files(path)
        if not self._files:
            raise FlowleapError(f"'{path}' holds no HDF5 file: ALOHA's are called episode_0.hdf5, ...")
        super().__init__(path, self._files[0], _ACTIONS[0])
        self._opened, self.n_episodes = 0, len(self._files)
        if not is_array(self._file.get(_ACTIONS[0])):
            self._actions = [_ACTIONS[1]]
        self._infer()

    def _place(self, index: int) -> tuple[Any, int, int]:
        if index != self._opened:
            self._file.close()
            self._file, self._opened = self._open_file(self._files[index]), index
        with self.naming(index, self._actions[0]):
            return self._file, 0, len(self._require_dataset(self._file, self._actions[0]))

    def label(self, index: int) -> str:
        """The file's name."""
        return self._files[index].name


def _files(path: Path) -> list[Path]:
    """The files with an episode each."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    files = (file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    return sorted(files, key=lambda file: by_number(file.name))


def _is_episode(file: Any) -> bool:
    return is_group(file.get("observations")) and any(is_array(file.get(name)) for name in _ACTIONS)
