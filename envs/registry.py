"""Tasks by name: what an environment offers, how it is scored, and who can demonstrate it.

A task of one's own becomes known to this process through `register_task`. A task family of the framework is one
module with `TASKS` (the names after the slash) and `make(name, **kwargs) -> Task`, known through one line in
`FAMILIES`. Neither listing tasks nor building a `Task` imports a simulator: only `Task.make_env` does. An open family,
which takes names that it cannot list, says in `ANY` what stands for them; its `make` may have to open the environment
to learn its spaces.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from flowleap.envs.task import Task
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.registry import Parameter, parameters_of

FAMILIES = {
    "adroit": "flowleap.envs.tasks.adroit",
    "fetch": "flowleap.envs.tasks.fetch",
    "gym": "flowleap.envs.tasks.gym_task",
    "metaworld": "flowleap.envs.tasks.metaworld",
    "ogbench": "flowleap.envs.tasks.ogbench",
    "probe": "flowleap.envs.tasks.slalom",
    "pusht": "flowleap.envs.tasks.pusht",
    "robosuite": "flowleap.envs.tasks.robosuite",
}

_registered: dict[str, Callable[..., Task]] = {}


def register_task(name: str, make: Callable[..., Task]) -> None:
    """Make `make_task(name, **kwargs)` return `make(**kwargs)`, in this process.

    Args:
        name: `family/task`; the family may be new. A name registered before is replaced.
        make: builds the task, whose own name is `name`; its keywords are the options of the task.

    Raises:
        FlowleapError: the name lacks a family, or is one of the framework's own tasks.
    """
    prefix, _, short = name.partition("/")
    if not prefix or not short:
        raise FlowleapError(f"task name {name!r}: write family/task")
    if _is_own(name):
        raise FlowleapError(f"task {name} exists already: choose another name")
    _registered[name] = make


def list_tasks() -> list[str]:
    """Return every task name, sorted by family, then the registered ones; imports no simulator."""
    own = [f"{family}/{name}" for family in sorted(FAMILIES) for name in _family(family).TASKS]
    return own + sorted(_registered)


def open_families() -> dict[str, str]:
    """Return `family/<what stands for the name>` -> one line, for families that take names they cannot list."""
    modules = ((family, _family(family)) for family in sorted(FAMILIES))
    return {f"{f}/{m.ANY}": (m.__doc__ or "").splitlines()[0] for f, m in modules if hasattr(m, "ANY")}


def make_task(name: str, **kwargs: Any) -> Task:
    """Build a task by name; `kwargs` go to its `make`.

    Raises:
        FlowleapError: unknown task name or unknown keyword, with the nearest known one.
    """
    known = task_options(name)
    for key in kwargs:
        if key not in known:
            raise FlowleapError(f"task {name}: unknown option {key!r}{suggest(key, known)} (known: {known})")
    return _maker(name)(**kwargs)


def task_options(name: str) -> list[str]:
    """Return the keywords that `make_task` takes for a task.

    Raises:
        FlowleapError: unknown task name, with the nearest known one.
    """
    if name not in _registered and not _is_own(name):
        raise FlowleapError(
            f"unknown task {name!r}{suggest(name, list_tasks())} (`flowleap list` shows them all)"
        )
    return list(inspect.signature(_maker(name)).parameters)


def _is_own(name: str) -> bool:
    """Whether a family of the framework takes the name."""
    prefix, _, short = name.partition("/")
    if not short or prefix not in FAMILIES:
        return False
    return short in _family(prefix).TASKS or hasattr(_family(prefix), "ANY")


def _maker(name: str) -> Callable[..., Task]:
    if name in _registered:
        return _registered[name]
    prefix, _, short = name.partition("/")
    return partial(_family(prefix).make, short)


def task_parameters(name: str) -> dict[str, Parameter]:
    """Those options of a task that the command line offers: the keyword-only ones of its family's `make`."""
    return parameters_of(_registered.get(name) or _family(name.partition("/")[0]).make)


def _family(prefix: str) -> ModuleType:
    return importlib.import_module(FAMILIES[prefix])
