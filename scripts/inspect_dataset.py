"""Show what a dataset holds: its Spec, its episodes, statistics of every column, and what is suspicious.

    flowleap inspect dataset=data/pusht.zarr
    flowleap inspect dataset=data/pusht.zarr html=report.html

Reads every format that `flowleap list what=formats` shows. NaN and infinity are counted here, where training would
stop at them. A dimension is constant if it has one value in all frames. Suspicious are NaN, constant dimensions,
actions that are clipped or jump, gaps between time stamps, outliers that set a range, cameras that stand still, and
episodes that are there twice. `html=report.html` writes the same with plots, as one page without any reference to
the network.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from flowleap.datasets.columns import ACTION
from flowleap.datasets.formats.registry import detect, open_source
from flowleap.datasets.formats.source import Source
from flowleap.datasets.quality.checks import Checks, Finding, grouped
from flowleap.datasets.quality.page import check_name, span, write_page
from flowleap.datasets.quality.profile import Profile, Statistics
from flowleap.scripts.cli.main import run_verb

_FLAT = 0.05  # normalised deviation below which a dimension looks all but constant to the network


def main(cfg: DictConfig) -> None:
    """Print the description of `cfg.dataset`, and write it as a page if asked."""
    page = check_name(cfg.html) if cfg.html else None
    name = detect(cfg.dataset)
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, 110)
    with open_source(cfg.dataset, name, allow_nan=True if name == "zarr" else None) as source:
        checks = Checks(source)
        window = (cfg.n_obs_steps, cfg.horizon, cfg.n_action_steps)
        profile = Profile(source, checks, window, cfg.image_episodes)
        findings = [*checks.findings, *profile.findings]
        console.print(f"dataset   {source.path} ({name})", markup=False)
        _describe(console, source, checks)
        _columns(console, source, profile)
        _network(console, profile)
        _findings(console, findings)
        if page is not None:
            write_page(page, name, source, checks, profile, findings)
            console.print(f"\nwritten: {page}", markup=False)


def _describe(console: Console, source: Source, checks: Checks) -> None:
    """Print what is known of the dataset as a whole."""
    lengths = checks.lengths
    console.print(f"spec      {source.spec.summary()}", markup=False)
    if source.spec.source:
        console.print(f"source    {json.dumps(source.spec.source)}", markup=False)
    for key, value in source.attrs.items():
        console.print(f"{key:<9} {value}", markup=False)
    console.print(
        f"episodes  {source.n_episodes}, of {lengths.min()} to {lengths.max()} frames "
        f"(median {np.median(lengths):g}), {lengths.sum()} frames"
    )
    if checks.measured_hz:
        console.print(f"rate      {checks.measured_hz:.4g} Hz by the time stamps")
    seeds = [seed for seed in map(source.seed, range(source.n_episodes)) if seed is not None]
    if seeds:
        console.print(f"seeds     {min(seeds)} to {max(seeds)}")


def _columns(console: Console, source: Source, profile: Profile) -> None:
    """Print the table of columns."""
    table = Table("key", "frame", "dtype", "min", "max", "mean", "std", "constant", "NaN/inf", box=None)
    for key, statistics in profile.columns.items():
        table.add_row(*_row(key, statistics))
    for key, reason in source.refused.items():
        table.add_row(key, reason)
    console.print()
    console.print(table)
    read = len(profile.image_episodes)
    if read < source.n_episodes and any(s.column.kind == "rgb" for s in profile.columns.values()):
        console.print(f"  images: {read} of {source.n_episodes} episodes read (image_episodes=0 reads all)")


def _row(key: str, statistics: Statistics) -> list[str]:
    """One line of the table."""
    constant = dimensions(statistics.constant, len(statistics.low))
    numbers = [float(np.min(statistics.low)), float(np.max(statistics.high)), *statistics.overall]
    return [
        key,
        str(list(statistics.column.shape)),
        statistics.column.dtype,
        *(f"{number:.4g}" for number in numbers),
        "-" if statistics.column.kind == "rgb" else constant,
        str(statistics.not_finite or "-"),
    ]


def dimensions(which: Sequence[int], size: int) -> str:
    """Say how many dimensions of a key, and which, if these are few."""
    if not which:
        return "-"
    text = f"{len(which)} of {size}"
    return f"{text} {list(which)}" if len(which) <= 8 and size > 1 else text


def _network(console: Console, profile: Profile) -> None:
    """Print what a network would be shown."""
    if profile.spec is None:
        console.print("\nno low-dim observation with finite values: nothing to show to a low-dim policy")
        return
    spec = profile.spec
    table = Table("the network sees", "window", "mean", "std", f"std below {_FLAT}", box=None)
    for key, (mean, std) in profile.normalized.items():
        steps = spec.horizon if key == ACTION else spec.n_obs_steps
        flat = [int(i) for i in np.flatnonzero(std < _FLAT)]
        table.add_row(
            key,
            str([steps, *profile.columns[key].column.shape]),
            span(mean),
            span(std),
            dimensions(flat, len(std)),
        )
    early, late = profile.padded()
    console.print()
    console.print(table)
    console.print(
        f"  ranges normalised to [-1, 1]; {profile.lengths.sum()} windows, "
        f"{100 * early:.1f} % repeat a first observation, {100 * late:.1f} % a last action"
    )


def _findings(console: Console, findings: Sequence[Finding]) -> None:
    console.print()
    console.print("nothing suspicious" if not findings else "suspicious:")
    for problems, remedy in grouped(findings):
        for problem in problems:
            console.print(f"  {problem}", markup=False)
        console.print(f"      {remedy}", markup=False)


if __name__ == "__main__":
    sys.exit(run_verb("inspect", sys.argv[1:]))
