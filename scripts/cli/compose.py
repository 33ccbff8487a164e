"""Where hydra finds the configuration: the YAML files of the verbs and suites, and parts made from signatures.

Tasks, objectives, backbones, encoders, the trainer, the window and the rest of a policy have no files: their options
stand in the signatures of what they configure (see `flowleap.policy.core.registry`), and become hydra's groups here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from flowleap import configs
from flowleap.policy.core.registry import Parameter, Registry, parameters_of
from flowleap.scripts.cli.paths import as_it_stands

CONFIG_DIR = Path(configs.__file__).parent

# verb -> an option's earlier name -> its name today. Both are understood, also in the configurations of stored runs.
RENAMED = {
    "train": {"cameras": "task.kwargs.cameras"} | {k: f"data.{k}" for k in ("mirror", "image_cache_mb")},
    "convert": {"actions": "action"},
    "collect": {"cameras": "task.kwargs.cameras"},
}
_REGISTRIES = {  # group -> module and registry; a module is only imported for verbs that have its group
    "objective": ("flowleap.policy.flow.objective", "OBJECTIVES"),
    "backbone": ("flowleap.policy.networks.build", "BACKBONES"),
    "encoder": ("flowleap.policy.networks.encoders", "ENCODERS"),
}
_GYM_TASK = re.compile(r"gym/[\w.:/-]+")


class Choice(NamedTuple):
    """One choice of a group: what it is, in a line, and its options by dotted key."""

    about: str
    parameters: Mapping[str, Parameter]


@cache
def choices(part: str) -> dict[str, Choice]:
    """The choices of a group that has no files, by name; none for other groups.

    A part that every policy has goes by the name `""`: it is no group, and its keys stand at the top.
    """
    if part in _REGISTRIES:
        module, name = _REGISTRIES[part]
        return registry_choices(getattr(importlib.import_module(module), name))
    if part == "task":
        from flowleap.envs.registry import list_tasks

        return {name: _task(name) for name in list_tasks()}
    if part == "trainer":
        from flowleap.policy.training.config import OPTIONS, TrainerConfig

        return {"default": Choice(_about(TrainerConfig), OPTIONS)}
    if part == "selection":
        from flowleap.datasets.selection import Selection

        return {"": Choice(_about(Selection), parameters_of(Selection))}
    if part == "window":
        from flowleap.policy.core.spec import Window

        return {"": Choice(_about(Window), parameters_of(Window))}
    if part == "continuity":
        from flowleap.policy.deploy.plan import Continuity

        return {"": Choice(_about(Continuity), parameters_of(Continuity))}
    if part == "perturbation":
        from flowleap.envs.perturb import KINDS, Perturbation

        return {"": Choice(_about(Perturbation), KINDS)}
    if part == "policy":
        from flowleap.policy.normalizer import Normalizer
        from flowleap.policy.policy import SINGLE

        modes = {f"normalizer.{key}": p for key, p in parameters_of(Normalizer).items()}
        return {"": Choice("", {**modes, **SINGLE})}
    return {}


def registry_choices(registry: Registry[Any]) -> dict[str, Choice]:
    """The entries of a registry as the choices of a group."""
    return {name: Choice(_about(registry[name]), registry.parameters(name)) for name in registry}


def _about(entry: Any) -> str:
    return (entry.__doc__ or "").partition("\n")[0]


def _task(name: str) -> Choice:
    from flowleap.envs.registry import task_parameters

    return Choice("", {f"kwargs.{key}": p for key, p in task_parameters(name).items()})


def open_choice(part: str, name: str) -> Choice | None:
    """The choice of a group by a name that it does not list: any environment of gymnasium; None for others."""
    return _task(name) if part == "task" and _GYM_TASK.fullmatch(name) else None


def parts_of(verb: str) -> list[str]:
    """What the defaults list of a verb names: its groups and parts."""
    tree = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / f"{verb}.yaml"), resolve=False)
    assert isinstance(tree, dict)
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in tree.get("defaults", [])]


def prepare(verb: str, words: Sequence[str], multirun: bool = False) -> list[str]:
    """Tell hydra what a verb's configuration is made of; return the overrides `words` as hydra must be given them.

    That is: in today's spelling, and paths as they stand (see `paths`).
    """
    parts = parts_of(verb)
    for part in parts:
        _store_all(part)
    if "task" in parts:
        for word in words:
            for name in _GYM_TASK.findall(word) if "task=" in word else ():
                _store("task", name, _task(name))
    return [as_it_stands(_renamed(verb, word), multirun) for word in words]


@cache
def _store_all(part: str) -> None:
    for name, choice in choices(part).items():
        _store(part, name, choice)


def _store(part: str, name: str, choice: Choice) -> None:
    """Make a choice known to hydra, as a file `<part>/<name>.yaml` would."""
    head: dict[str, Any] = {"name": name} if part in _REGISTRIES else {}
    node = OmegaConf.create({"name": name, "kwargs": {}} if part == "task" else head)
    for key, parameter in choice.parameters.items():
        default = parameter.default
        OmegaConf.update(node, key, list(default) if isinstance(default, tuple) else default)
    folder, _, leaf = f"{part}/{name}".rstrip("/").rpartition("/")
    ConfigStore.instance().store(leaf, node, group=folder or None)


def _renamed(verb: str, word: str) -> str:
    key = word.partition("=")[0].lstrip("+~")
    return word.replace(key, RENAMED.get(verb, {}).get(key, key), 1)


@contextmanager
def session() -> Iterator[Any]:
    """Hydra with our configuration: the one in use where a verb composes another's, else a new one."""
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else hydra.initialize_config_module("flowleap.configs", version_base="1.3"):
        yield GlobalHydra.instance().hydra


def given_overrides() -> list[str]:
    """The words of the running command line, to be stored beside its results; empty outside of hydra."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
