"""Recorded data as a trained policy sees them: read as its training read them, in windows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.selection import Selected, Selection, chosen_episodes
from flowleap.datasets.windows import Windows
from flowleap.envs.conventions import in_actions_of
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import parameters_of
from flowleap.policy.core.spec import Spec
from flowleap.scripts.common import asked_imports, plain, task_of
from flowleap.scripts.resume import CONFIG

_WHICH = ("keys", "episodes", "drop", "filter")


class Recorded(NamedTuple):
    """Windows of some episodes, what these are called, and their numbers in the dataset."""

    windows: Windows
    labels: list[str]
    numbers: list[int]


def run_config(policy: Path) -> Mapping[str, Any]:
    """The configuration of the run that a checkpoint or an exported folder lies in; empty where there is none."""
    for folder in (policy, policy.parent, policy.parent.parent):
        if (folder / CONFIG).is_file():
            try:
                read = plain(OmegaConf.load(folder / CONFIG))
                return read if isinstance(read, dict) else {}
            except Exception as error:  # yaml and OmegaConf have kinds of their own
                raise FlowleapError(f"{folder / CONFIG}: not readable ({error})") from error
    return {}


def recorded_windows(
    dataset: str, task: Any, spec: Spec, config: Mapping[str, Any], episodes: Any = None
) -> Recorded:
    """The windows of a dataset.

    Args:
        dataset: where it is.
        task: that the policy names, `{"name", "kwargs"}`, or None.
        spec: the policy's.
        config: of its run, which says how columns are called there and which of them are the actions.
        episodes: those to read, see `selection.Which`; None is all.

    Raises:
        FlowleapError: the dataset is damaged, or does not fit the policy; the message names the key.
    """
    # A file may not ask for imports; such tasks read a dataset's columns under their own names.
    known = None if asked_imports(task) else task_of(task)
    reading: dict[str, Any] = {
        name: config.get(name) for name in parameters_of(Selection) if name not in _WHICH
    }
    keys = None if known else list(spec.observations)
    with open_dataset(dataset, keys=keys, episodes=episodes, **reading) as opened:
        images = any(obs.dense for obs in spec.observations.values())
        data = load_columns(known and in_actions_of(known, opened.spec), opened, images=images)
        labels = [opened.label(index) for index in range(opened.n_episodes)]
        numbers = list(opened.chosen if isinstance(opened, Selected) else range(opened.n_episodes))
    spec.require_match(data.spec, "the checkpoint", f"dataset {dataset}")
    windows = data.windows(spec.n_obs_steps, spec.horizon, spec.n_action_steps)
    return Recorded(windows, labels, numbers)


def held_out(dataset: str, training: Mapping[str, Any], config: Mapping[str, Any]) -> list[int] | None:
    """The episodes of a dataset that a policy was not trained on; None where it is another one, or nobody knows.

    Args:
        dataset: where it is.
        training: what the checkpoint notes of its training; empty for exports.
        config: of its run.
    """
    place = config.get("dataset") or training.get("dataset")
    if not isinstance(place, str) or not _same(place, dataset):
        return None
    if config.get("filter") is not None:  # some formats number the episodes of a filter anew
        return None
    with open_dataset(dataset) as every:
        n = every.n_episodes
    chosen, dropped = config.get("episodes"), config.get("drop")
    seen = set(range(n) if chosen is None else chosen_episodes(chosen, n, "episodes", dataset))
    seen -= set() if dropped is None else set(chosen_episodes(dropped, n, "drop", dataset))
    return [index for index in range(n) if index not in seen]


def _same(one: str, other: str) -> bool:
    """Whether two texts name the same place, of this machine or of the Hub."""
    return one == other or os.path.realpath(os.path.expanduser(one)) == os.path.realpath(
        os.path.expanduser(other)
    )
