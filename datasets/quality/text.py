"""What `flowleap inspect` prints: the Spec, the episodes, statistics of every column, and what is suspicious."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from flowleap.datasets import roles
from flowleap.datasets.columns import ACTION
from flowleap.datasets.interface import Dataset
from flowleap.datasets.quality.checks import Checks, Finding, grouped
from flowleap.datasets.quality.page import span
from flowleap.datasets.quality.profile import Profile

_FLAT = 0.05  # normalised deviation below which a dimension looks all but constant to the network


def print_report(console: Console, name: str, source: Dataset, checks: Checks, profile: Profile) -> None:
    """Print what `checks` and `profile` found in a dataset of the format `name`."""
    console.print(f"dataset   {source.path} ({name})", markup=False)
    _describe(console, source, checks)
    _columns(console, source, profile)
    _network(console, profile)
    _findings(console, [*checks.findings, *profile.findings])


def _describe(console: Console, source: Dataset, checks: Checks) -> None:
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


def _columns(console: Console, source: Dataset, profile: Profile) -> None:
    """Print the table of columns."""
    table = Table("key", "frame", "dtype", "min", "max", "mean", "std", "constant", "NaN/inf", box=None)
    for key, s in profile.columns.items():
        constant = "-" if s.column.dense else _dimensions(s.constant, len(s.low))
        numbers = (f"{x:.4g}" for x in (float(np.min(s.low)), float(np.max(s.high)), *s.overall))
        shape, bad = str(list(s.column.shape)), str(s.not_finite or "-")
        table.add_row(key, shape, s.column.dtype, *numbers, constant, bad)
    for key, reason in source.refused.items():
        table.add_row(key, reason)
    console.print()
    console.print(table)
    for key, picture in source.pictures.items():
        if text := picture.summary():
            console.print(f"  {key}: {text}", markup=False)
    if source.unused:
        console.print(f"  not observed: {roles.explain(source.unused)}", markup=False)
    read = len(profile.image_episodes)
    if read < source.n_episodes and any(s.column.dense for s in profile.columns.values()):
        console.print(
            f"  images and points: {read} of {source.n_episodes} episodes read (image_episodes=0 reads all)"
        )


def _dimensions(which: Sequence[int], size: int) -> str:
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
        window = str([steps, *profile.columns[key].column.shape])
        table.add_row(key, window, span(mean), span(std), _dimensions(flat, len(std)))
    early, late = profile.padded()
    console.print()
    console.print(table)
    console.print(
        f"  ranges normalised to [-1, 1]; {profile.lengths.sum()} windows, "
        f"{100 * early:.1f} % repeat a first observation, {100 * late:.1f} % a last action"
    )


def _findings(console: Console, findings: Sequence[Finding]) -> None:
    suspicious, notes = ([f for f in findings if f.note == note] for note in (False, True))
    console.print()
    console.print("suspicious:" if suspicious else "nothing suspicious")
    _list(console, suspicious)
    if notes:
        console.print("worth knowing:")
        _list(console, notes)


def _list(console: Console, findings: Sequence[Finding]) -> None:
    for problems, remedy in grouped(findings):
        for problem in problems:
            console.print(f"  {problem}", markup=False)
        console.print(f"      {remedy}", markup=False)
