"""Minari (Farama): a folder with metadata.json and main_data.hdf5; read without the minari package

Minari stores one observation more than actions; the last one, after the last action, is left out. The entries of
dictionary and tuple spaces become columns of their own, rewards and ends become extra columns, infos and texts are
left out.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode, as_stored, flat_names, require_memory
from flowleap.datasets.formats.base import explain, read_json
from flowleap.datasets.formats.hdf5 import Hdf5Source
from flowleap.policy.core.errors import FlowleapError, optional_import

_FILE = "main_data.hdf5"
_EXTRA = ("rewards", "terminations", "truncations")
_MIN_IMAGE_SIDE = 32  # Minari's rule: Box spaces of uint8 from this height and width on are JPEG


def detect(path: Path) -> bool:
    """The folder of a dataset, its `data` folder, or the HDF5 file in there."""
    return _folder(path) is not None


class Reader(Hdf5Source):
    """A Minari dataset; the columns are those of its first episode."""

    def __init__(self, path: Path) -> None:
        folder = _folder(path)
        if folder is None:
            raise FlowleapError(f"'{path}' is no Minari dataset: it needs metadata.json and {_FILE}")
        super().__init__(path, folder / _FILE)
        self._metadata = read_json(folder / "metadata.json")
        names = [name for name in self._file if re.fullmatch(r"episode_[0-9]+", self._text(name, _FILE))]
        self._episodes = sorted(names, key=lambda name: int(name[8:]))
        self.n_episodes = len(self._episodes)
        expected = self._metadata.get("total_episodes", self.n_episodes)
        if not names or expected != self.n_episodes:
            raise FlowleapError(f"'{path}' has {self.n_episodes} episodes, metadata.json says {expected}")
        jpeg = self._metadata.get("jpeg_encoding", True)
        self._images = _image_spaces(self._metadata.get("observation_space")) if jpeg else set()
        self._infer()

    def _infer(self) -> None:
        paths: list[str] = []

        def visit(name: str, node: Any) -> None:
            full = f"observations/{self._text(name, 'episode 0')}"
            if isinstance(node, self._h5.Dataset) and (node.dtype.kind in "biuf" or full in self._images):
                paths.append(full)

        observations = self._group(0).get("observations")
        if isinstance(observations, self._h5.Dataset):
            paths.append("observations")
        elif observations is not None:
            observations.visititems(visit)
        self._paths = flat_names(paths, ["observations/"]) | {key: key for key in _EXTRA}
        self._paths[ACTION] = "actions"
        first = self._read(0, list(self._paths))
        described = {key: as_stored(values.shape[1:], values.dtype) for key, values in first.items()}
        action, extra = described.pop(ACTION), {key: described.pop(key) for key in _EXTRA}
        env = self._metadata.get("env_spec")
        source: dict[str, Any] = {"dataset": self._metadata.get("dataset_id", self.path.name)}
        if isinstance(env, str):
            source |= {"env_spec": json.loads(env), "env": json.loads(env).get("id")}
        self.describe(described, action, extra, source=source)

    def _group(self, index: int) -> Any:
        return self._file[self._episodes[index]]

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode; observations without the last one."""
        columns: Episode = {}
        group = self._group(index)
        length = len(group["actions"]) if isinstance(group.get("actions"), self._h5.Dataset) else None
        for key in keys:
            path = self._paths[key]
            with self.naming(index, key):
                node = group.get(path)
                if not isinstance(node, self._h5.Dataset):
                    raise FlowleapError(f"is missing (no dataset {path})")
                self._require_own(node.id)
                require_memory(math.prod(node.shape) * node.dtype.itemsize, "")
                values = node[()]
                if path.startswith("observations"):
                    if length is not None and len(values) != length + 1:
                        raise FlowleapError(f"has {len(values)} frames for {length} actions, not one more")
                    values = values[:-1]
                if path in self._images:
                    values = _decode(values)
            columns[key] = values[:, None] if key == ACTION and values.ndim == 1 else values
        return columns

    def seed(self, index: int) -> int | None:
        """The seed of the episode's reset."""
        seed = self._group(index).attrs.get("seed")
        return int(seed) if isinstance(seed, int | np.integer) else None


def _folder(path: Path) -> Path | None:
    """The folder with metadata and data, from any of the paths that name a dataset."""
    home = path.parent if path.name == _FILE else path
    folders = (home, home / "data")
    return next((f for f in folders if (f / _FILE).is_file() and (f / "metadata.json").is_file()), None)


def _decode(frames: NDArray) -> NDArray[np.uint8]:
    image = optional_import("PIL.Image", extra="formats")
    with explain("holds a damaged JPEG", OSError, ValueError, image.DecompressionBombError):
        return np.stack([np.asarray(image.open(io.BytesIO(bytes(frame)))) for frame in frames])


def _image_spaces(space: Any) -> set[str]:
    """Paths of the observations that Minari stores as JPEG, from the JSON of the observation space."""
    found: set[str] = set()

    def visit(node: Any, path: str) -> None:
        if not isinstance(node, Mapping):
            return
        inside = node.get("subspaces")
        if isinstance(inside, list):
            inside = {f"_index_{i}": child for i, child in enumerate(inside)}
        if isinstance(inside, Mapping):
            for name, child in inside.items():
                visit(child, f"{path}/{name}")
        elif node.get("type") == "Box" and node.get("dtype") == "uint8":
            shape = node.get("shape") or []
            if len(shape) in (2, 3) and min(shape[:2]) >= _MIN_IMAGE_SIDE:
                low, high = np.asarray(node.get("low")), np.asarray(node.get("high"))
                if not low.any() and (high == 255).all():
                    found.add(path)

    if isinstance(space, str):
        visit(json.loads(space), "observations")
    return found
