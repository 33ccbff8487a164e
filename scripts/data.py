"""Where a dataset and a task meet: columns in the task's keys, and the Spec that both agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, Episode
from flowleap.datasets.episodes import EpisodeStore
from flowleap.datasets.formats import detect, open_source
from flowleap.datasets.source import read_columns
from flowleap.envs.registry import Task, task_options
from flowleap.policy.spec import FlowleapError, Spec, suggest


def load_columns(task: Task | None, dataset: str | Path) -> tuple[Episode, NDArray[np.int64], Spec]:
    """Read the columns that a policy for `task` trains on (without a task: all that the store's Spec names).

    A store that holds the task's own keys is read as it is; a foreign one goes through `task.from_recorded`.
    Other formats than zarr are read in place, less their images.

    Returns:
        columns {key: [N, *shape]} with `action`, episode ends [E], and the Spec (To, H, Ta still 1).

    Raises:
        FlowleapError: the store is missing or damaged, or does not fit the task; the message names the key.
    """
    store = EpisodeStore(dataset) if detect(dataset) == "zarr" else _InPlace(dataset)
    if task is None:
        spec = store.spec or EpisodeStore(dataset).infer_spec()
        return *_read(store, [*spec.observations, ACTION]), spec
    keys, translate = task_columns(task, store.keys, store.spec, dataset)
    columns, ends = _read(store, keys)
    return translate(columns), ends, task.spec


def task_columns(
    task: Task, offered: Sequence[str], spec: Spec | None, dataset: str | Path
) -> tuple[list[str], Callable[[Mapping[str, NDArray]], Episode]]:
    """Which of the columns `offered` a task reads, and what makes its own observation keys and `action` of them.

    Raises:
        FlowleapError: a column is missing, or `spec`, the dataset's, does not fit the task.
    """
    keys = [*task.spec.observations, ACTION]
    if set(keys) <= set(offered):
        if spec is not None:
            task.spec.require_match(spec, f"task {task.name}", f"dataset {dataset}")
        return keys, dict
    if task.from_recorded is not None and set(task.recorded_keys) <= set(offered):
        return list(task.recorded_keys), task.from_recorded
    missing = next(key for key in keys if key not in offered)
    raise FlowleapError(
        f"task {task.name} needs column '{missing}', but dataset {dataset} offers only {list(offered)}"
        f"{suggest(missing, offered)}"
    )


def with_recorded_env(name: str, kwargs: Mapping[str, Any], dataset: str | Path) -> dict[str, Any]:
    """`kwargs` of task `name` and, where the task takes `env_args` and none are given, those that the dataset recorded.

    robomimic's files say in which robot, controller and scene they were recorded.
    """
    if "env_args" in kwargs or "env_args" not in task_options(name):
        return dict(kwargs)
    spec = (EpisodeStore(dataset) if detect(dataset) == "zarr" else _InPlace(dataset)).spec
    recorded = spec.source.get("env_args") if spec else None
    return {**kwargs, "env_args": recorded} if isinstance(recorded, dict) and recorded else dict(kwargs)


def with_mirrored(
    task: Task | None, columns: Episode, ends: NDArray[np.int64]
) -> tuple[Episode, NDArray[np.int64]]:
    """The episodes and, where the task has a mirror symmetry, their mirror images after them."""
    if task is None or task.mirror is None:
        return columns, ends
    mirrored = task.mirror(columns)
    both = {key: np.concatenate([column, mirrored[key]]) for key, column in columns.items()}
    return both, np.concatenate([ends, ends[-1] + ends])


class _InPlace:
    """A dataset of another format than zarr: what `load_columns` asks of it before it reads.

    Images are left out, which would fill the memory: they are for `flowleap convert`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        with open_source(path) as source:
            spec, self.keys = source.spec, list(source.columns)
        lowdim = {key: obs for key, obs in spec.observations.items() if obs.kind == "lowdim"}
        if not lowdim:
            raise FlowleapError(
                f"dataset '{path}' holds images only: `flowleap convert source={path} out=NAME.zarr` first"
            )
        self.spec: Spec = replace(spec, observations=lowdim)


def _read(store: EpisodeStore | _InPlace, keys: Sequence[str]) -> tuple[Episode, NDArray[np.int64]]:
    """Return columns of all episodes and the episode ends."""
    if isinstance(store, EpisodeStore):
        return store.read(keys), store.episode_ends
    with open_source(store.path) as source:
        return read_columns(source, keys)
