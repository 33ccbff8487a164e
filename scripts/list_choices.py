"""List what there is to choose from: tasks, protocols, objectives, backbones, encoders, formats and downloads.

    flowleap list what=tasks filter=door

`what=tasks` shows one kind, `filter=door` only names that contain the word. Tasks are shown with what a
policy observes and commands, their score, and whether a scripted expert can demonstrate them. Listing needs
no simulator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from omegaconf import DictConfig

from flowleap.datasets.dataset import describe_formats
from flowleap.datasets.public_files import PUBLIC
from flowleap.envs.protocols import PROTOCOLS
from flowleap.envs.registry import list_tasks, make_task, open_families
from flowleap.policy.core.errors import UsageError, suggest
from flowleap.scripts.cli.compose import choices
from flowleap.scripts.cli.main import run_verb


def main(cfg: DictConfig) -> None:
    """Print the chosen kinds, each as `name  description` lines."""
    kinds: dict[str, Callable[[], dict[str, str]]] = {
        "tasks": lambda: {name: describe_task(name) for name in list_tasks()} | open_families(),
        "protocols": lambda: {f"{p.name} ({p.tasks})": p.about for p in PROTOCOLS},
        **{f"{group}s": partial(describe_group, group) for group in ("objective", "backbone", "encoder")},
        "formats": describe_formats,
        "downloads": lambda: {name: public.about for name, public in PUBLIC.items()},
    }
    if cfg.what != "all" and cfg.what not in kinds:
        raise UsageError(f"what={cfg.what} is none of all, {', '.join(kinds)}{suggest(cfg.what, kinds)}")
    for kind, entries in kinds.items():
        if cfg.what not in ("all", kind):
            continue
        shown = {name: text for name, text in entries().items() if str(cfg.filter) in name}
        width = max(map(len, shown), default=0)
        print(f"{kind} ({len(shown)})")
        for name, text in shown.items():
            print(f"  {name:<{width}}  {text}".rstrip())
        print()


def describe_task(name: str) -> str:
    """One line: observations -> action, score, time limit, expert."""
    task = make_task(name)
    observations = ", ".join(f"{key}{list(obs.shape)}" for key, obs in task.spec.observations.items())
    expert = "expert" if task.expert else "human demonstrations only"
    action, score = f"action[{task.spec.action_dim}]", f"{task.scoring.metric} in {task.max_steps} steps"
    return f"{observations} -> {action}; {score}; {expert}"


def describe_group(group: str) -> dict[str, str]:
    """Choice -> what it is, for one hydra group."""
    return {name: choice.about for name, choice in choices(group).items()}


if __name__ == "__main__":
    sys.exit(run_verb("list"))
