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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np

from flowleap.policy.spec import FlowleapError, ObsKey, Spec, suggest
from flowleap.policy.spec import optional_import as optional_import

Metric = Literal["success", "max_reward", "sum_reward"]
Observation = dict[str, np.ndarray]
SCENE = "scene"  # beside the columns that `Task.reset_to` gets: the episode's scene, as text

FAMILIES = {
    "adroit": "flowleap.envs.adroit",
    "fetch": "flowleap.envs.fetch",
    "gym": "flowleap.envs.gym_task",
    "metaworld": "flowleap.envs.metaworld",
    "probe": "flowleap.envs.slalom",
    "pusht": "flowleap.envs.pusht",
    "robosuite": "flowleap.envs.robosuite",
}


class Expert(Protocol):
    """A scripted demonstrator, made anew for every episode."""

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [A] (float32, inside the action space) for one observation frame."""
        ...


class EnvFactory(Protocol):
    """Builds the task's environment; picklable, because worker processes call it too."""

    def __call__(self, render_mode: str | None = None) -> gymnasium.Env[Observation, np.ndarray]:
        """Return a fresh environment; `render_mode` is None or "rgb_array"."""
        ...


@dataclass(frozen=True)
class Task:
    """One task, ready to be collected, trained on and evaluated.

    Attributes:
        name: `family/task`, for instance `pusht/keypoints`.
        make_env: environment factory. Observation space: a Dict of Boxes with exactly the Spec's keys; action
            space: a Box [A]. `info["success"]` is a bool after every step; a time limit is not its business. With
            image keys in the Spec it has an attribute `images`, the ones that its next observation shall hold.
        spec: keys, shapes, action, control rate and origin; To, H and Ta are left at 1.
        max_steps: actions after which whoever drives the environment ends the episode.
        metric: headline score: the rate of `success`, or the mean of every episode's best reward or of its return.
        seed_note: one sentence on what a seed decides, printed beside every score.
        expert: `(env, seed) -> Expert`, or None where only people can demonstrate.
        from_recorded: maps the columns `recorded_keys` of a foreign store, each [N, ...] over all frames, to
            this task's observation keys and `action`; None where stores hold those keys already. Image columns
            are passed on as they come: they need not be arrays in memory.
        recorded_keys: the columns that `from_recorded` reads.
        mirror: the task's mirror symmetry, or None: maps columns of its own observation keys and `action`, each
            [N, ...] in real units, to those of the mirrored world, where the same physics and goal hold exactly.
        modes: names of the equally good ways to succeed, two or more, of which the expert draws one uniformly
            at random; `info["mode"]` is then the index of the way taken, -1 while that is open. Empty where
            the task tells none apart.
        outcomes: further bools of `info` that are reported per episode beside success (true at any step).
        measures: numbers of `info` whose largest value `flowleap replay` reports beside the rewards.
        reports_success: whether `info["success"]` can be true at all; where not, scores leave it out.
        reset_to: puts an environment into a recorded initial state and returns its observation; gets the first
            frame of the columns of one entry of `state_keys`, {key: [*shape]}, and, where the recording has it, the
            episode's scene as text under `SCENE`. None: no recorded state can be set, and `flowleap replay` needs
            the seeds that `flowleap collect` stores.
        state_keys: sets of recorded columns that each determine the initial state; the first one there is used.
        recorded_outcome: reads off the columns of one recorded episode, key -> [T, *shape] (those there are), what
            they say of its outcome: any of `success`, `max_reward`, `sum_reward`, `outcomes` and `measures`.
        info_columns: entries of `info`, present after every reset and step, that are collected as columns beside
            the observations, such as the simulator's state.
    """

    name: str
    make_env: EnvFactory
    spec: Spec
    max_steps: int
    metric: Metric
    seed_note: str
    expert: Callable[[gymnasium.Env[Any, Any], int], Expert] | None = None
    from_recorded: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    recorded_keys: tuple[str, ...] = ()
    mirror: Callable[[Mapping[str, np.ndarray]], Observation] | None = None
    modes: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    reports_success: bool = True
    reset_to: Callable[[Any, Mapping[str, Any]], Observation] | None = None
    state_keys: tuple[tuple[str, ...], ...] = ()
    recorded_outcome: Callable[[Mapping[str, np.ndarray]], dict[str, float]] | None = None
    info_columns: Mapping[str, ObsKey] = field(default_factory=dict)


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


def package_versions(*packages: str) -> dict[str, str | None]:
    """Return distribution name -> installed version, None where absent."""
    return {package: _version(package) for package in packages}


def _family(prefix: str) -> ModuleType:
    return importlib.import_module(FAMILIES[prefix])


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
