"""Where a dataset and a task meet: columns in the task's keys, and the Spec that both agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, infer_key
from flowleap.datasets.formats.registry import detect, open_source
from flowleap.datasets.formats.source import read_columns
from flowleap.datasets.formats.zarr_store import EpisodeStore
from flowleap.datasets.frames import CACHE_BYTES, Frames, Mirrored
from flowleap.envs.registry import task_options
from flowleap.envs.task import Task
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import Spec

Columns = Mapping[str, Any]
"""key -> [N, *shape] over all frames: an array, or `Frames` where it holds images."""


def load_columns(
    task: Task | None, dataset: str | Path, cache_bytes: int = CACHE_BYTES, images: bool = False
) -> tuple[Columns, NDArray[np.int64], Spec]:
    """Read the columns that a policy for `task` trains on (without a task: all that the store's Spec names).

    A store that holds the task's own keys is read as it is; a foreign one goes through `task.recording.translate`.
    Other formats than zarr are read in place, less their images. Images of a zarr store are `Frames`: in memory
    if all of them fit into `cache_bytes`, else read when they are asked for. `images` says that the policy has an
    encoder for them, so that leaving them out would be a mistake.

    Returns:
        columns {key: [N, *shape]} with `action`, episode ends [E], and the Spec (To, H, Ta still 1).

    Raises:
        FlowleapError: the store is missing or damaged, or does not fit the task; the message names the key.
    """
    store = EpisodeStore(dataset) if detect(dataset) == "zarr" else _InPlace(dataset)
    if task is None:
        if images and isinstance(store, _InPlace) and store.images:
            raise FlowleapError(
                f"dataset {dataset} is read in place, without its images {store.images}: "
                f"`flowleap convert source={dataset} out=NAME.zarr` first, or choose encoder=lowdim"
            )
        spec = store.spec or EpisodeStore(dataset).infer_spec()
        return *_read(store, [*spec.observations, ACTION], cache_bytes), spec
    keys, translate = task_columns(task, store.keys, store.spec, dataset)
    columns, ends = _read(store, keys, cache_bytes)
    return translate(columns), ends, task.spec


def task_columns(
    task: Task, offered: Sequence[str], spec: Spec | None, dataset: str | Path
) -> tuple[list[str], Callable[[Columns], Columns]]:
    """Which of the columns `offered` a task reads, and what makes its own observation keys and `action` of them.

    Raises:
        FlowleapError: a column is missing, or `spec`, the dataset's, does not fit the task.
    """
    keys = [*task.spec.observations, ACTION]
    if set(keys) <= set(offered):
        if spec is not None:
            task.spec.require_match(spec, f"task {task.name}", f"dataset {dataset}")
        return keys, dict
    if task.recording.translate is not None and set(task.recording.keys) <= set(offered):
        return list(task.recording.keys), task.recording.translate
    missing = next(key for key in keys if key not in offered)
    convert = ""
    wanted = task.spec.observations.get(missing)
    if wanted is not None and wanted.kind == "rgb" and detect(dataset) != "zarr":
        convert = f"; images train from zarr: `flowleap convert source={dataset} out=NAME.zarr` first"
    cameras = _recorded_kwargs(spec.source).get("cameras") if spec else None
    if missing in task.spec.observations and missing not in (cameras or ()) and isinstance(cameras, list):
        convert += f"; it was recorded with cameras=[{','.join(map(str, cameras))}]"
    raise FlowleapError(
        f"task {task.name} needs column '{missing}', but dataset {dataset} offers only {list(offered)}"
        f"{suggest(missing, offered)}{convert}"
    )


def with_recorded_env(name: str, kwargs: Mapping[str, Any], dataset: str | Path) -> dict[str, Any]:
    """`kwargs` of task `name` and what the dataset recorded of those that are not given.

    `env_args`, where the task takes them: robomimic's files say in which robot, controller and scene they were
    recorded. `camera_size`, where the task is seen through `cameras`.
    """
    options = task_options(name)
    wants_args = "env_args" in options and "env_args" not in kwargs
    wants_size = "camera_size" in options and "camera_size" not in kwargs and kwargs.get("cameras")
    if not wants_args and not wants_size:
        return dict(kwargs)
    spec = (EpisodeStore(dataset) if detect(dataset) == "zarr" else _InPlace(dataset)).spec
    source = spec.source if spec else {}
    env_args, size = source.get("env_args"), _recorded_kwargs(source).get("camera_size")
    known: dict[str, Any] = {}
    if wants_args and isinstance(env_args, dict) and env_args:
        known["env_args"] = env_args
    if wants_size and source.get("task") == name and isinstance(size, int):
        known["camera_size"] = size
    return {**kwargs, **known}


def _recorded_kwargs(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of the task that a dataset was recorded with, as far as it says."""
    kwargs = source.get("kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def check_cameras(cameras: Any, task: Mapping[str, Any] | None) -> None:
    """Raise `FlowleapError` where `cameras` are given for a task (its config, or none) that has none to choose."""
    if cameras and "cameras" not in (task.get("kwargs") or {} if task else {}):
        where = f"task {task['name']} has none to choose" if task else "no task is given"
        raise FlowleapError(f"cameras={cameras} are for tasks metaworld/*, and {where}: leave them out")


def with_mirrored(
    task: Task | None, columns: Columns, ends: NDArray[np.int64]
) -> tuple[Columns, NDArray[np.int64]]:
    """The episodes and, where the task has a mirror symmetry, their mirror images after them.

    Images are mirrored when they are read.
    """
    if task is None or task.mirror is None:
        return columns, ends
    mirror = task.mirror
    both: dict[str, Any] = {}
    for key, column in columns.items():
        if isinstance(column, Frames):
            both[key] = Mirrored(column, partial(_mirrored, mirror, key))
        else:
            both[key] = np.concatenate([column, _mirrored(mirror, key, column)])
    return both, np.concatenate([ends, ends[-1] + ends])


def _mirrored(mirror: Callable[[Columns], Columns], key: str, column: NDArray) -> NDArray:
    """One column through a task's symmetry."""
    return mirror({key: column})[key]


class _InPlace:
    """A dataset of another format than zarr: what `load_columns` asks of it before it reads.

    Images are left out, which would fill the memory: they are for `flowleap convert`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        with open_source(path) as source:
            spec = source.spec
            self.keys = [key for key, column in source.columns.items() if column.kind != "rgb"]
            self.images = [key for key, column in source.columns.items() if column.kind == "rgb"]
        lowdim = {key: obs for key, obs in spec.observations.items() if obs.kind == "lowdim"}
        if not lowdim:
            raise FlowleapError(
                f"dataset '{path}' holds images only: `flowleap convert source={path} out=NAME.zarr` first"
            )
        self.spec: Spec = replace(spec, observations=lowdim)


def _read(
    store: EpisodeStore | _InPlace, keys: Sequence[str], cache_bytes: int
) -> tuple[Columns, NDArray[np.int64]]:
    """Return columns of all episodes and the episode ends."""
    if not isinstance(store, EpisodeStore):
        with open_source(store.path) as source:
            return read_columns(source, keys)
    images = [key for key in keys if infer_key(store.shape(key), store.dtype(key)).kind == "rgb"]
    columns: dict[str, Any] = store.read([key for key in keys if key not in images])
    for key in images:
        columns[key] = Frames(store, key, cache_bytes)
        cache_bytes -= columns[key].nbytes if columns[key].cached else 0
    return columns, store.episode_ends
