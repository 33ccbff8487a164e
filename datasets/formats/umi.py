"""UMI zarr (universal_manipulation_interface): poses and gripper widths without actions, which are made of them

A UMI store holds, for each robot, where the hand-held gripper was: `robot0_eef_pos`, `robot0_eef_rot_axis_angle` and
`robot0_gripper_width`. What is to be done after a frame is to be where the gripper was in the next one: the action of
frame t is the pose and the width of frame t + 1, that of an episode's last frame its own. Rotations are 6-D.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, CACHE_BYTES, Columns, Episode, as_stored
from flowleap.datasets.formats import zarr_store
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.rotations import from_matrix, matrix_from
from flowleap.policy.core.spec import ObsKey

Kind = Literal["absolute", "relative"]
_PARTS = ("eef_pos", "eef_rot_axis_angle", "gripper_width")
_ROBOT = re.compile(r"(?:^|/)data/(robot[0-9]+)_eef_pos(?:/|$)")
_WIDTH = 10  # position (3), rotation (6), gripper (1)


def detect(path: Path) -> bool:
    """A zarr store with the poses of a robot and without actions."""
    if not zarr_store.detect(path):
        return False
    try:
        names = (
            zipfile.ZipFile(path).namelist()
            if path.is_file()
            else [f"data/{p.name}/" for p in (path / "data").iterdir()]
        )
    except (OSError, zipfile.BadZipFile):
        return False
    return any(map(_ROBOT.search, names)) and not any(
        re.search(r"(?:^|/)data/action/", name) for name in names
    )


class Reader(zarr_store.EpisodeStore):
    """A UMI store.

    Args:
        path: the folder or zip file.
        poses: `absolute` poses in the frame that the store is recorded in, or `relative` ones: the next pose in the
            frame of the present one, T(t)^-1 T(t+1), and the next width. (UMI's own relative actions are a whole chunk
            in the frame of its first pose; composed along the chunk, these give the same poses.)
        fill_missing: see `EpisodeStore`.

    Raises:
        FlowleapError: `poses` is neither, or a robot lacks a part of its pose.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        poses: Kind = "absolute",
        fill_missing: bool = False,
    ) -> None:
        if poses not in get_args(Kind):
            raise FlowleapError(f"poses={poses} of a UMI store is none of {', '.join(get_args(Kind))}")
        self._kind = poses
        super().__init__(path, fill_missing)

    def _infer_spec(self) -> None:
        fields = {
            key: as_stored(self.shape(key), self.dtype(key)) for key in self._keys if key in self._arrays
        }
        self._robots = sorted(key.removesuffix("_eef_pos") for key in fields if key.endswith("_eef_pos"))
        for robot in self._robots:
            for part, size in zip(_PARTS, (3, 3, 1), strict=True):
                if f"{robot}_{part}" not in fields or fields[f"{robot}_{part}"].size != size:
                    raise self._wrong(
                        f" has no column '{robot}_{part}' of {size} numbers, of which actions are made"
                    )
        convention = "absolute" if self._kind == "absolute" else "delta"
        action, source = ObsKey((_WIDTH * len(self._robots),)), {"rotation": "6d", "actions": self._kind}
        self.describe(fields, action, {}, action_convention=convention, source=source)

    @property
    def keys(self) -> list[str]:
        """Names of all columns, `action` last."""
        return [*self._keys, ACTION]

    def columns(self, keys: Sequence[str] | None = None, cache_bytes: int = CACHE_BYTES) -> Columns:
        """Columns of all episodes; images are `Frames`."""
        wanted = self._wanted(keys)
        recorded = dict(super().columns([key for key in wanted if key != ACTION], cache_bytes))
        if ACTION in wanted:
            parts = [self.episode(index, [ACTION])[ACTION] for index in range(self.n_episodes)]
            recorded[ACTION] = np.concatenate(parts)
        return {key: recorded[key] for key in wanted}

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode, and make its actions."""
        columns = (
            super()._read(index, [key for key in keys if key != ACTION]) if set(keys) != {ACTION} else {}
        )
        if ACTION in keys:
            names = [f"{robot}_{part}" for robot in self._robots for part in _PARTS]
            poses = super()._read(index, names)
            each = [self._actions(*(poses[f"{robot}_{part}"] for part in _PARTS)) for robot in self._robots]
            columns[ACTION] = np.concatenate(each, axis=1)
        return {key: columns[key] for key in keys}

    def _actions(self, position: NDArray, rotation: NDArray, width: NDArray) -> NDArray[np.float32]:
        """Actions [T, 10] of one robot from its positions [T, 3] (m), rotations [T, 3] (rad) and widths [T, 1] (m)."""
        following = np.minimum(np.arange(len(position)) + 1, len(position) - 1)
        matrix = matrix_from("axis_angle", rotation)
        place, turn = position[following].astype(np.float64), matrix[following]
        if self._kind == "relative":
            back = matrix.swapaxes(-1, -2)
            place = (back @ (place - position)[..., None])[..., 0]
            turn = back @ turn
        grip = width.reshape(len(width), 1)[following]
        return np.concatenate([place, from_matrix("6d", turn), grip], axis=1).astype(np.float32)
