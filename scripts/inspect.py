"""Show what a dataset holds: its Spec, its episodes, and statistics of every column.

NaN and infinity are counted here, where training would stop at them. A dimension is constant if it has one
value in all frames.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from flowleap.datasets.episodes import EpisodeStore
from flowleap.policy.spec import FlowleapError
from flowleap.scripts.cli import run_verb

_BLOCK_BYTES = 64 * 2**20


@dataclass
class Statistics:
    """Statistics of one column: `low` and `high` for each number of a frame, the rest over all of them."""

    low: NDArray
    high: NDArray
    mean: float
    std: float
    not_finite: int

    @property
    def constant(self) -> list[int]:
        """Flat indices of the dimensions with one value in all frames."""
        return [int(i) for i in np.flatnonzero(np.ravel(self.low == self.high))]


def main(cfg: DictConfig) -> None:
    """Print the description of `cfg.dataset`."""
    store = EpisodeStore(cfg.dataset)
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, 110)
    lengths = np.diff(store.episode_ends, prepend=0)
    spec = store.spec
    console.print(f"dataset   {store.path}", markup=False)
    console.print(
        f"spec      {spec.summary() if spec else 'none stored (read off the columns)'}", markup=False
    )
    if spec and spec.source:
        console.print(f"source    {json.dumps(spec.source)}", markup=False)
    for key, value in store.attrs.items():
        console.print(f"{key:<9} {value}", markup=False)
    console.print(
        f"episodes  {store.n_episodes}, of {lengths.min()} to {lengths.max()} frames "
        f"(median {np.median(lengths):g}), {store.n_frames} frames"
    )
    if store.episode_seeds is not None:
        console.print(f"seeds     {store.episode_seeds.min()} to {store.episode_seeds.max()}")
    table = Table("key", "frame", "dtype", "min", "max", "mean", "std", "constant", "NaN/inf", box=None)
    for key in store.keys:
        table.add_row(*_row(store, key))
    console.print()
    console.print(table)


def _row(store: EpisodeStore, key: str) -> list[str]:
    """One line of the table, or why the column cannot be read."""
    try:
        stats = column_statistics(store, key)
    except FlowleapError as error:
        return [key, str(error).partition(": ")[2]]
    size = stats.low.size
    constant = f"{len(stats.constant)} of {size}" if stats.constant else "-"
    if 0 < len(stats.constant) <= 8 and size > 1:
        constant += f" {stats.constant}"
    numbers = [float(np.min(stats.low)), float(np.max(stats.high)), stats.mean, stats.std]
    return [
        key,
        str(list(store.shape(key))),
        str(store.dtype(key)),
        *(f"{number:.4g}" for number in numbers),
        constant,
        str(stats.not_finite or "-"),
    ]


def column_statistics(store: EpisodeStore, key: str) -> Statistics:
    """Read a column in blocks of episodes; values that are not finite are counted and left out."""
    shape = store.shape(key)
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    total = squares = 0.0
    count = not_finite = 0
    for episodes in _blocks(store, key):
        values = store.read([key], episodes, allow_nan=True)[key].astype(np.float64)
        finite = np.isfinite(values)
        not_finite += int(values.size - finite.sum())
        low = np.minimum(low, values.min(axis=0, where=finite, initial=np.inf))
        high = np.maximum(high, values.max(axis=0, where=finite, initial=-np.inf))
        total += float(values.sum(where=finite))
        squares += float(np.square(values).sum(where=finite))
        count += int(finite.sum())
    mean = total / max(count, 1)
    std = float(np.sqrt(max(squares / max(count, 1) - mean**2, 0.0)))
    return Statistics(low, high, mean, std, not_finite)


def _blocks(store: EpisodeStore, key: str) -> Iterator[slice]:
    """Yield slices of episodes that need about 64 MiB each."""
    frame_bytes = 8 * max(1, int(np.prod(store.shape(key))))
    step = max(1, int(_BLOCK_BYTES / frame_bytes / (store.n_frames / store.n_episodes)))
    for first in range(0, store.n_episodes, step):
        yield slice(first, min(first + step, store.n_episodes))


if __name__ == "__main__":
    sys.exit(run_verb("inspect", sys.argv[1:]))
