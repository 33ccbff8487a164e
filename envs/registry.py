"""Tasks by name: what an environment offers, how it is scored, and who can demonstrate it.

A task family is one module with `TASKS` (the names after the slash) and `make(name, **kwargs) -> Task`; it
becomes known through one line in `FAMILIES`. Neither listing tasks nor building a `Task` imports a simulator:
only `Task.make_env` does. An open family, which takes names that it cannot list, says in `ANY` what stands for them;
its `make` may have to open the environment to learn its spaces.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from types import ModuleType
from typing import Any

from flowleap.envs.task import Task
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.errors import optional_import as optional_import
from flowleap.policy.core.registry import Parameter, parameters_of

FAMILIES = {
    "adroit": "flowleap.envs.tasks.adroit",
    "fetch": "flowleap.envs.tasks.fetch",
    "gym": "flowleap.envs.tasks.gym_task",
    "metaworld": "flowleap.envs.tasks.metaworld",
    "probe": "flowleap.envs.tasks.slalom",
    "pusht": "flowleap.envs.tasks.pusht",
    "robosuite": "flowleap.envs.tasks.robosuite",
}


def list_tasks() -> list[str]:
    """Return every task name, sorted by family; imports no simulator."""
    return [f"{family}/{name}" for family in sorted(FAMILIES) for name in _family(family).TASKS]


def open_families() -> dict[str, str]:
    """Return `family/<what stands for the name>` -> one line, for families that take names they cannot list."""
    modules = {family: _family(family) for family in sorted(FAMILIES)}
    return {
        f"{family}/{module.ANY}": (module.__doc__ or "").splitlines()[0]
        for family, module in modules.items()
        if hasattr(module, "ANY")
    }


def make_task(name: str, **kwargs: Any) -> Task:
    """Build a task by name; `kwargs` go to its family's `make`.

    Raises:
        FlowleapError: unknown task name or unknown keyword, with the nearest known one.
    """
    known = task_options(name)
    for key in kwargs:
        if key not in known:
            raise FlowleapError(f"task {name}: unknown option {key!r}{suggest(key, known)} (known: {known})")
    prefix, _, short = name.partition("/")
    task: Task = _family(prefix).make(short, **kwargs)
    return task


def task_options(name: str) -> list[str]:
    """Return the keywords that `make_task` takes for a task.

    Raises:
        FlowleapError: unknown task name, with the nearest known one.
    """
    prefix, _, short = name.partition("/")
    if name not in list_tasks() and not (short and prefix in FAMILIES and hasattr(_family(prefix), "ANY")):
        raise FlowleapError(
            f"unknown task {name!r}{suggest(name, list_tasks())} (`flowleap list` shows them all)"
        )
    make = _family(prefix).make
    return [key for key in inspect.signature(make).parameters if key != "name"]


def task_parameters(name: str) -> dict[str, Parameter]:
    """Those options of a task that the command line offers: the keyword-only ones of its family's `make`."""
    return parameters_of(_family(name.partition("/")[0]).make)


def _family(prefix: str) -> ModuleType:
    return importlib.import_module(FAMILIES[prefix])
