"""zarr v3 or zarr v2 replay buffer (Diffusion Policy, UMI): data/<key>, meta/episode_ends; folder or .zarr.zip"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowleap.datasets.columns import ACTION, Episode
from flowleap.datasets.formats.source import Source
from flowleap.datasets.formats.zarr_store import EpisodeStore
from flowleap.datasets.formats.zarr_writer import NO_SEED, EpisodeWriter
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey

Writer = EpisodeWriter

_BLOCK_BYTES = 32 * 2**20


def detect(path: Path) -> bool:
    """A folder with the metadata file of a zarr group, or a zip."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))
    return path.suffix == ".zip"


def open_source(path: Path, fill_missing: bool = False, allow_nan: bool = False) -> Source:
    """Open a store.

    Args:
        path: folder or zip file.
        fill_missing: read chunk files that are not there as the fill value.
        allow_nan: read NaN and infinity as they are, instead of raising.
    """
    return ZarrSource(EpisodeStore(path, fill_missing), allow_nan)


class ZarrSource(Source):
    """An `EpisodeStore` as a `Source`. Columns that its Spec does not name are extra."""

    def __init__(self, store: EpisodeStore, allow_nan: bool = False) -> None:
        self._store, self._allow_nan = store, allow_nan
        self.path = store.path
        self.attrs = store.attrs
        self.n_episodes = store.n_episodes
        self.refused = store.refused
        self._block: tuple[int, int, Episode] = (0, 0, {})
        self.spec = store.spec or store.infer_spec()
        self.extra = {}
        for key in store.readable:
            column = ObsKey(store.shape(key), store.dtype(key).name)
            if key == ACTION and column.dtype == np.dtype(np.float32).name:
                continue
            if key not in self.spec.observations:
                self.extra[key] = column

    def read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode, from a block of episodes: neighbours share chunks."""
        first, last, columns = self._block
        if not first <= index < last or set(columns) != set(keys):
            last = self._block_end(index, keys)
            first, columns = index, self._store.read(list(keys), slice(index, last), self._allow_nan)
            self._block = (first, last, columns)
        starts, ends = self._store.episode_starts, self._store.episode_ends
        rows = slice(int(starts[index] - starts[first]), int(ends[index] - starts[first]))
        return {key: columns[key][rows] for key in keys}

    def _block_end(self, index: int, keys: Sequence[str]) -> int:
        """The episode after the last one that still fits into a block that begins with `index`."""
        widths = [self._store.dtype(key).itemsize * int(np.prod(self._store.shape(key))) for key in keys]
        frames = _BLOCK_BYTES // max(1, sum(widths))
        end = np.searchsorted(self._store.episode_ends, self._store.episode_starts[index] + frames, "right")
        return max(index + 1, int(end))

    def seed(self, index: int) -> int | None:
        """The seed that an episode was recorded with, None if unknown."""
        seeds = self._store.episode_seeds
        return None if seeds is None or seeds[index] == NO_SEED else int(seeds[index])

    def error(self, index: int, key: str, problem: str) -> FlowleapError:
        """Return an error that names store, episode and key."""
        return FlowleapError(f"dataset '{self.path}', episode {index}: '{key}' {problem}")
