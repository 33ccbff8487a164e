"""Where a dataset and a task meet: columns in the task's keys, and the Spec that both agree on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowleap.datasets.episodes import EpisodeStore
from flowleap.envs.registry import Task
from flowleap.policy.spec import FlowleapError, Spec, suggest

ACTION = "action"


def load_columns(task: Task | None, dataset: str | Path) -> tuple[dict[str, np.ndarray], np.ndarray, Spec]:
    """Read the columns that a policy for `task` trains on (without a task: all that the store's Spec names).

    A store that holds the task's own keys is read as it is; a foreign one goes through `task.from_recorded`.

    Returns:
        columns {key: [N, *shape]} with `action`, episode ends [E], and the Spec (To, H, Ta still 1).

    Raises:
        FlowleapError: the store is missing or damaged, or does not fit the task; the message names the key.
    """
    store = EpisodeStore(dataset)
    if task is None:
        spec = store.spec or store.infer_spec()
        return store.read([*spec.observations, ACTION]), store.episode_ends, spec
    keys = [*task.spec.observations, ACTION]
    if set(keys) <= set(store.keys):
        if store.spec is not None:
            task.spec.require_match(store.spec, f"task {task.name}", f"dataset {dataset}")
        return store.read(keys), store.episode_ends, task.spec
    if task.from_recorded is not None and set(task.recorded_keys) <= set(store.keys):
        return task.from_recorded(store.read(list(task.recorded_keys))), store.episode_ends, task.spec
    missing = next(key for key in keys if key not in store.keys)
    raise FlowleapError(
        f"task {task.name} needs column '{missing}', but dataset {dataset} offers only {store.keys}"
        f"{suggest(missing, store.keys)}"
    )
