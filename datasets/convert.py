"""Rewriting a dataset in another format, episode by episode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from flowleap.datasets.columns import ACTION, Episode, to_uint8
from flowleap.datasets.interface import Dataset
from flowleap.datasets.quality.repairs import Repairs
from flowleap.datasets.rotations import Rotations
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec


class Plan(NamedTuple):
    """What to read of each episode, what to make of it, and what to call the result."""

    keys: list[str]
    transform: Callable[[Mapping[str, NDArray]], Episode]
    spec: Spec
    extra: dict[str, ObsKey]


def convert(source: Dataset, plan: Plan, writer: Any) -> None:
    """Write the episodes that the writer does not have yet."""
    console = Console(stderr=True)
    if writer.n_episodes:
        print(f"going on after {writer.n_episodes} episodes that are converted already", file=sys.stderr)
    rest, quiet = range(writer.n_episodes, source.n_episodes), not console.is_terminal
    numbers = [key for key in plan.keys if source.fields[key].kind != "rgb"]
    source.check_finite((index, source.episode(index, numbers)) for index in rest)
    for index in track(rest, "converting", console=console, transient=True, disable=quiet):
        columns = plan.transform(source.episode(index, plan.keys))
        for key, obs in plan.spec.observations.items():
            if obs.kind == "rgb":
                if key in plan.keys and not np.isfinite(columns[key]).all():
                    source.check_finite((i, source.episode(i, [key])) for i in rest if i >= index)
                columns[key] = to_uint8(columns[key], f"episode {index}: '{key}'")
        try:
            writer.add(columns, source.seed(index))
        except FlowleapError as error:
            raise FlowleapError(f"'{source.path}', {source.label(index)}: {error}") from error


def with_repairs(plan: Plan, source: Dataset, fix: Sequence[str]) -> Plan:
    """Let a plan begin with repairs of what the checks find; see `quality.repairs`."""
    if not fix:
        return plan
    repairs = Repairs(source, fix, plan.keys)
    spec = replace(plan.spec, source={**plan.spec.source, "fixed": repairs.facts})
    return Plan(plan.keys, lambda columns: plan.transform(repairs(columns)), spec, plan.extra)


def with_rotations(plan: Plan, rotation: str | None) -> Plan:
    """Add the change of the actions' rotations to a plan."""
    if rotation is None:
        return plan
    rotations = Rotations(plan.spec, rotation)

    def transform(columns: Mapping[str, NDArray]) -> Episode:
        episode = plan.transform(columns)
        return episode | {ACTION: rotations(episode[ACTION])}

    extra = dict(plan.extra)
    if ACTION in extra:
        extra[ACTION] = replace(extra[ACTION], shape=(rotations.spec.action_dim,))
    return Plan(plan.keys, transform, rotations.spec, extra)
