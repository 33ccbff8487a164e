"""Rewriting a dataset in another format, episode by episode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from flowleap.datasets.columns import ACTION, Episode
from flowleap.datasets.images import NoImages
from flowleap.datasets.interface import Dataset
from flowleap.datasets.quality.repairs import Repairs
from flowleap.policy.core.actions import Relative
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.rotations import Rotations
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
    numbers = [key for key in plan.keys if not source.fields[key].image]
    source.check_finite((index, source.episode(index, numbers)) for index in rest)
    for index in track(rest, "converting", console=console, transient=True, disable=quiet):
        columns = plan.transform(_episode(source, index, plan.keys))
        try:
            writer.add(columns, source.seed(index))
        except FlowleapError as error:
            raise FlowleapError(f"'{source.path}', {source.label(index)}: {error}") from error


def _episode(source: Dataset, index: int, keys: Sequence[str]) -> Episode:
    """Read an episode; where a camera holds no images, name all episodes from there on in which one does not."""
    try:
        return source.episode(index, keys)
    except NoImages as error:
        rest, cameras = range(index, source.n_episodes), [key for key in keys if source.fields[key].image]
        bad = {key: [i for i in rest if _is_broken(source, i, key)] for key in cameras}
        ways = source.leave_out([i for found in bad.values() for i in found], [k for k in bad if bad[k]])
        raise FlowleapError(f"{error.problem}; leave out {ways}") from error


def _is_broken(source: Dataset, index: int, key: str) -> bool:
    try:
        source.episode(index, [key])
    except NoImages:
        return True
    return False


def with_repairs(plan: Plan, source: Dataset, fix: Sequence[str]) -> Plan:
    """Let a plan begin with repairs of what the checks find; see `quality.repairs`."""
    if not fix:
        return plan
    repairs = Repairs(source, fix, plan.keys)
    spec = replace(plan.spec, source={**plan.spec.source, "fixed": repairs.facts})
    return Plan(plan.keys, lambda columns: plan.transform(repairs(columns)), spec, plan.extra)


def with_relative(plan: Plan, target: str | None, key: str | None = None, dims: Any = None) -> Plan:
    """Add the change between absolute actions and those relative to an observation to a plan; see `Relative`."""
    if target is None:
        return plan
    relative = Relative(plan.spec, target, key, dims)

    def transform(columns: Mapping[str, NDArray]) -> Episode:
        episode = plan.transform(columns)
        return episode | {ACTION: relative(episode[ACTION], episode[relative.key])}

    return plan._replace(transform=transform, spec=relative.spec)


def with_rotations(plan: Plan, target: str | None, dims: Any = None, kind: str | None = None) -> Plan:
    """Add the change of the actions' rotations to a plan; see `Rotations`."""
    if target is None:
        return plan
    rotations = Rotations(plan.spec, target, dims, kind)

    def transform(columns: Mapping[str, NDArray]) -> Episode:
        episode = plan.transform(columns)
        return episode | {ACTION: rotations(episode[ACTION])}

    extra = dict(plan.extra)
    if ACTION in extra:
        extra[ACTION] = replace(extra[ACTION], shape=(rotations.spec.action_dim,))
    return Plan(plan.keys, transform, rotations.spec, extra)
