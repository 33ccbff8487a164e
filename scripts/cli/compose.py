"""The names under which hydra finds the configuration, and the tasks that have no file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

from flowleap.envs.tasks import metaworld

CONFIG_MODULE = "flowleap.configs"
VERSION_BASE = "1.3"
_GYM_TASK = re.compile(r"gym/[\w./-]+")


def given_overrides() -> list[str]:
    """The words of the running command line, to be stored beside its results; empty outside of hydra."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def register_tasks(words: Sequence[str] = ()) -> None:
    """Make `task=metaworld/<name>` a choice for all fifty tasks, without files, and each `gym/<EnvId>` in `words`."""
    named = [match for word in words if "task=" in word for match in _GYM_TASK.findall(word)]
    for task in [*(f"metaworld/{name}" for name in metaworld.TASKS), *named]:
        node = {
            "name": task,
            "kwargs": {"cameras": "${oc.select:cameras,null}"} if task.startswith("metaworld/") else {},
            "n_obs_steps": 2,
            "horizon": 16,
            "n_action_steps": 8,
        }
        group, _, name = task.rpartition("/")
        ConfigStore.instance().store(group=f"task/{group}", name=name, node=node)
