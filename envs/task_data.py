"""Where a dataset and a task meet: columns in the task's keys, and the Spec that both agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, CACHE_BYTES, Columns
from flowleap.datasets.dataset import Dataset
from flowleap.datasets.digest import digest
from flowleap.datasets.frames import Frames, Mirrored
from flowleap.envs.registry import task_options
from flowleap.envs.task import Task
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ObsKey, Spec

_ROUNDING = 2  # of 255, which resizing one way and the other may differ by


def load_columns(
    task: Task | None, dataset: Dataset, cache_bytes: int = CACHE_BYTES, images: bool = False
) -> Dataset:
    """Read what a policy for `task` trains on (without a task: all that can be trained from) into memory.

    A dataset that holds the task's own keys is read as it is; a foreign one goes through `task.recording.translate`.
    Images and points of other formats than zarr are left out. Those of a zarr store are `Frames`: in memory if all of
    them fit into `cache_bytes`, else read when they are asked for. `images` says that the policy has an encoder for
    them, so that leaving them out would be a mistake.

    Returns:
        A dataset in memory, of the task's observations and `action`, with the task's Spec (To, H, Ta still 1); its
        attribute `digest` is that of the columns as recorded (see `datasets.digest`).

    Raises:
        FlowleapError: the dataset is damaged, or does not fit the task; the message names the key.
    """
    translate: Callable[[Columns], Columns] = dict
    if task is None:
        left_out = [key for key in dataset.spec.observations if key not in dataset.trainable.observations]
        if images and left_out:
            raise FlowleapError(
                f"dataset {dataset.path} is read in place, without {left_out}: "
                f"`flowleap convert source={dataset.path} out=NAME.zarr` first, or choose encoder=lowdim"
            )
        read = columns = dataset.columns(cache_bytes=cache_bytes)
        spec = dataset.trainable
    else:
        unread = [k for k, c in dataset.fields.items() if c.dense and not dataset.lends_images]
        offered = [key for key in dataset.keys if key not in unread]
        keys, translate = task_columns(task, dataset, offered)
        read = dataset.columns(keys, cache_bytes)
        columns = translate(read)
        spec = _seen(task.spec, columns, {id(read[key]): dataset.fields[key] for key in keys})
    loaded = Dataset.from_arrays(columns, dataset.episode_ends, spec)
    loaded.attrs["digest"] = digest(read, dataset.episode_ends)
    return loaded


def _seen(spec: Spec, columns: Columns, read: Mapping[int, ObsKey]) -> Spec:
    """A task's Spec with cameras as the dataset reads them; `read` is the identity of a column -> what it is.

    A task passes image columns on as they come, perhaps under another name.
    """
    observations = dict(spec.observations)
    for key, obs in observations.items():
        found = read.get(id(columns[key]))
        if obs.image and found is not None and found.views:
            observations[key] = replace(obs, shape=found.shape, views=found.views)
    return replace(spec, observations=observations)


def task_columns(
    task: Task, dataset: Dataset, offered: Sequence[str], match: bool = True
) -> tuple[list[str], Callable[[Columns], Columns]]:
    """Which of the columns `offered` a task reads, and what makes its own observation keys and `action` of them.

    Raises:
        FlowleapError: a column is missing, or, with `match`, the dataset's Spec does not fit the task.
    """
    keys = [*task.spec.observations, ACTION]
    if set(keys) <= set(offered):
        if match and dataset.has_spec:
            task.spec.require_match(dataset.spec, f"task {task.name}", f"dataset {dataset.path}")
        return keys, dict
    if task.recording.translate is not None and set(task.recording.keys) <= set(offered):
        return list(task.recording.keys), task.recording.translate
    missing = next(key for key in keys if key not in offered)
    convert = ""
    wanted = task.spec.observations.get(missing)
    if wanted is not None and wanted.dense and not dataset.lends_images:
        convert = f"; images and points train from zarr: `flowleap convert source={dataset.path} out=NAME.zarr` first"
    recorded = _recorded_kwargs(dataset.spec.source) if match else {}
    cameras = recorded.get("cameras")
    if missing in task.spec.observations and missing not in (cameras or ()) and isinstance(cameras, list):
        convert += f"; it was recorded with task.kwargs.cameras=[{','.join(map(str, cameras))}]"
    if missing in task.spec.observations and isinstance(recorded.get("observe"), str):
        convert += f"; it was recorded with task.kwargs.observe={recorded['observe']}"
    convert += _renaming(task, dataset, offered)
    raise FlowleapError(
        f"task {task.name} needs column '{missing}', but dataset {dataset.path} offers only {list(offered)}"
        f"{suggest(missing, offered)}{convert}"
    )


def _renaming(task: Task, dataset: Dataset, offered: Sequence[str]) -> str:
    """How a gymnasium environment's observations get the names of a dataset's columns, for a message."""
    wanted = task.spec.observations
    if not task.name.startswith("gym/") or set(wanted) <= set(offered):
        return ""
    others = [key for key in offered if key not in wanted and key in dataset.spec.observations]
    names = {}
    for key, obs in wanted.items():
        fits = [other for other in others if dataset.fields[other].shape == obs.shape]
        names[key] = key if key in offered else fits[0] if fits else "COLUMN"
    described = ", ".join(f"{key} {list(obs.shape)}" for key, obs in wanted.items())
    pairs = ",".join(f"{key}:{name}" for key, name in names.items())
    return (
        f"; the environment observes {described}: 'task.kwargs.keys={{{pairs}}}' renames or leaves out some"
    )


def with_recorded_env(name: str, kwargs: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """`kwargs` of task `name` and what the dataset recorded of those that are not given.

    `env_args`, where the task takes them: robomimic's files say in which robot, controller and scene they were
    recorded. `camera_size`, where the task is seen through `cameras`.
    """
    options = task_options(name)
    source = dataset.spec.source
    env_args, size = source.get("env_args"), _recorded_kwargs(source).get("camera_size")
    known: dict[str, Any] = {}
    if "env_args" in options and isinstance(env_args, dict) and env_args:
        known["env_args"] = env_args
    if (
        "camera_size" in options
        and kwargs.get("cameras")
        and source.get("task") == name
        and isinstance(size, int)
    ):
        known["camera_size"] = size
    return {**known, **kwargs}


def _recorded_kwargs(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of the task that a dataset was recorded with, as far as it says."""
    kwargs = source.get("kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def with_mirrored(task: Task | None, dataset: Dataset) -> Dataset:
    """The episodes of `load_columns` and, where the task has a mirror symmetry, their mirror images after them.

    Images are mirrored when they are read.
    """
    if task is None or task.mirror is None:
        return dataset
    mirror, ends = task.mirror, dataset.episode_ends
    for key, obs in dataset.spec.observations.items():
        if obs.views and not _commute(obs, partial(_mirrored, mirror, key)):
            raise FlowleapError(
                f"mirror images of camera '{key}' would not be cropped and resized as the camera's own are: choose a "
                "square part around the middle, or say data.mirror=false"
            )
    both: dict[str, Any] = {}
    for key, column in dataset.columns().items():
        image = partial(_mirrored, mirror, key)
        images = isinstance(column, Frames)
        both[key] = Mirrored(column, image) if images else np.concatenate([column, image(column)])
    return Dataset.from_arrays(both, np.concatenate([ends, ends[-1] + ends]), dataset.spec)


def _commute(obs: ObsKey, mirror: Callable[[NDArray], NDArray]) -> bool:
    """Whether the views of a camera's mirror image are the mirror image of its views, but for rounding."""
    frame = np.random.default_rng(0).integers(0, 256, (1, *obs.camera_shape), np.uint8)
    first, last = mirror(obs.see(frame)), obs.see(mirror(frame))
    return first.shape == last.shape and int(np.abs(first.astype(int) - last.astype(int)).max()) <= _ROUNDING


def _mirrored(mirror: Callable[[Columns], Columns], key: str, column: NDArray) -> NDArray:
    """One column through a task's symmetry."""
    return mirror({key: column})[key]
