"""Show what a dataset holds: its Spec, its episodes, statistics of every column, and what is suspicious.

Reads every format that `flowleap list what=formats` shows. NaN and infinity are counted here, where training would
stop at them. A dimension is constant if it has one value in all frames. Suspicious are NaN, constant dimensions,
actions that are clipped or jump, gaps between time stamps, and episodes that are there twice.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from flowleap.datasets.formats import detect, open_source
from flowleap.datasets.source import Source
from flowleap.scripts.cli import run_verb
from flowleap.scripts.data_checks import Checks


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
    name = detect(cfg.dataset)
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, 110)
    with open_source(cfg.dataset, name, allow_nan=True if name == "zarr" else None) as source:
        checks = Checks(source)
        console.print(f"dataset   {source.path} ({name})", markup=False)
        _describe(console, source, checks.lengths)
        table = Table("key", "frame", "dtype", "min", "max", "mean", "std", "constant", "NaN/inf", box=None)
        for key in source.columns:
            table.add_row(*_row(source, key))
        for key, reason in source.refused.items():
            table.add_row(key, reason)
    console.print()
    console.print(table)
    console.print()
    console.print("nothing suspicious" if not checks.findings else "suspicious:")
    for finding in checks.findings:
        console.print(f"  {finding}", markup=False)


def _describe(console: Console, source: Source, lengths: NDArray[np.int64]) -> None:
    """Print what is known of the dataset as a whole."""
    console.print(f"spec      {source.spec.summary()}", markup=False)
    if source.spec.source:
        console.print(f"source    {json.dumps(source.spec.source)}", markup=False)
    for key, value in source.attrs.items():
        console.print(f"{key:<9} {value}", markup=False)
    console.print(
        f"episodes  {source.n_episodes}, of {lengths.min()} to {lengths.max()} frames "
        f"(median {np.median(lengths):g}), {lengths.sum()} frames"
    )
    seeds = [seed for seed in map(source.seed, range(source.n_episodes)) if seed is not None]
    if seeds:
        console.print(f"seeds     {min(seeds)} to {max(seeds)}")


def _row(source: Source, key: str) -> list[str]:
    """One line of the table."""
    stats = column_statistics(source, key)
    size = stats.low.size
    constant = f"{len(stats.constant)} of {size}" if stats.constant else "-"
    if 0 < len(stats.constant) <= 8 and size > 1:
        constant += f" {stats.constant}"
    numbers = [float(np.min(stats.low)), float(np.max(stats.high)), stats.mean, stats.std]
    column = source.columns[key]
    return [
        key,
        str(list(column.shape)),
        column.dtype,
        *(f"{number:.4g}" for number in numbers),
        constant,
        str(stats.not_finite or "-"),
    ]


def column_statistics(source: Source, key: str) -> Statistics:
    """Read a column episode by episode; values that are not finite are counted and left out."""
    shape = source.columns[key].shape
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    total = squares = 0.0
    count = not_finite = 0
    for index in range(source.n_episodes):
        values = source.episode(index, [key])[key].astype(np.float64)
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


if __name__ == "__main__":
    sys.exit(run_verb("inspect", sys.argv[1:]))
