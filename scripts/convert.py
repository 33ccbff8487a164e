"""Rewrite a dataset in another format; by default as a flowleap store: zarr v3, compressed, with checksums.

    flowleap convert source=pusht_cchi_v7_replay.zarr out=data/pusht.zarr

Reads every format that `flowleap list what=formats` shows, episode by episode. Float images that hold whole
numbers from 0 to 255 become uint8, a quarter of the memory. `keys=[...]` keeps some of the columns;
`task=pusht/keypoints` maps the recorded columns to that task's observations instead. A conversion to zarr that was
killed goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from flowleap.datasets.columns import ACTION, Episode, to_uint8
from flowleap.datasets.formats.registry import format_module, open_source, writable_formats
from flowleap.datasets.formats.source import Source
from flowleap.datasets.rotations import Rotations
from flowleap.envs.registry import make_task
from flowleap.policy.core.errors import FlowleapError, UsageError, suggest
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.scripts.cli.main import run_verb

_SUFFIXES = {".hdf5": "robomimic", ".h5": "robomimic"}


class Plan(NamedTuple):
    """What to read of each episode, what to make of it, and what to call the result."""

    keys: list[str]
    transform: Callable[[Mapping[str, NDArray]], Episode]
    spec: Spec
    extra: dict[str, ObsKey]


def main(cfg: DictConfig) -> None:
    """Write `cfg.source` to `cfg.out`."""
    to = _target_format(cfg)
    options = {"filter": cfg.filter, "actions": cfg.actions, "fill_missing": cfg.fill_missing or None}
    with open_source(cfg.source, cfg.format, **options) as source:
        plan = _with_rotations(_plan(source, cfg), cfg.rotation)
        spec = plan.spec
        if cfg.control_hz:
            spec = replace(spec, control_hz=float(cfg.control_hz))
        if cfg.action_convention:
            spec = replace(spec, action_convention=cfg.action_convention)
        settings: dict[str, Any] = {}
        if to == "zarr":
            asked = OmegaConf.to_container(cfg, resolve=True)
            assert isinstance(asked, dict)
            asked.pop("overwrite")
            settings = {"keep_interrupted": False, "job": json.dumps([source.fingerprint(), asked])}
        elif to == "lerobot":
            settings = {"video": cfg.video}
        writer = format_module(to).Writer(
            cfg.out, spec, source.attrs, cfg.overwrite, extra=plan.extra, **settings
        )
        with writer:
            _copy(source, plan, writer)
    print(f"{writer.path}: {writer.n_episodes} episodes, {writer.n_frames} frames")
    print(spec.summary())


def _copy(source: Source, plan: Plan, writer: Any) -> None:
    """Write the episodes that the writer does not have yet."""
    console = Console(stderr=True)
    if writer.n_episodes:
        print(f"going on after {writer.n_episodes} episodes that are converted already", file=sys.stderr)
    episodes = track(
        range(writer.n_episodes, source.n_episodes),
        "converting",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    for index in episodes:
        columns = plan.transform(source.episode(index, plan.keys))
        for key, obs in plan.spec.observations.items():
            if obs.kind == "rgb":
                columns[key] = to_uint8(columns[key], f"episode {index}: '{key}'")
        try:
            writer.add(columns, source.seed(index))
        except FlowleapError as error:
            raise FlowleapError(f"'{source.path}', {source.label(index)}: {error}") from error


def _target_format(cfg: DictConfig) -> str:
    """The format to write: as asked, else by the suffix of the new path."""
    to: str = cfg.to or _SUFFIXES.get(Path(cfg.out).suffix, "zarr")
    known = writable_formats()
    if to not in known:
        raise UsageError(f"to={to} is none of {', '.join(known)}{suggest(to, known)}")
    if cfg.video and to != "lerobot":
        raise UsageError("video=true is for to=lerobot only")
    return to


def _plan(source: Source, cfg: DictConfig) -> Plan:
    """Return what to do with the columns, before rotations."""
    if cfg.task:
        if cfg["keys"] is not None:
            raise FlowleapError(
                "say task=... or keys=[...], not both: the task decides which columns are read"
            )
        task = make_task(cfg.task.name, **cfg.task.get("kwargs", {}))
        if task.from_recorded is not None:
            keys = [key for key in task.recorded_keys if key != ACTION]
            return Plan([*keys, ACTION], task.from_recorded, task.spec, {})
        return Plan([*task.spec.observations, ACTION], dict, task.spec, {})
    if cfg["keys"] is None:
        return Plan(list(source.columns), dict, source.spec, source.extra)
    columns = source.columns
    for key in cfg["keys"]:
        if key not in columns or key == ACTION:
            raise FlowleapError(
                f"'{source.path}' has no observation '{key}', only {', '.join(columns)}{suggest(key, columns)}"
            )
    spec = replace(source.spec, observations={key: columns[key] for key in cfg["keys"]})
    extra = {ACTION: source.extra[ACTION]} if ACTION in source.extra else {}
    return Plan([*cfg["keys"], ACTION], dict, spec, extra)


def _with_rotations(plan: Plan, rotation: str | None) -> Plan:
    """Add the change of the actions' rotations to a plan."""
    if rotation is None:
        return plan
    rotations = Rotations(plan.spec, rotation)

    def transform(columns: Mapping[str, NDArray]) -> Episode:
        episode = plan.transform(columns)
        return episode | {ACTION: rotations(episode[ACTION])}

    extra = dict(plan.extra)
    if ACTION in extra:
        extra[ACTION] = replace(extra[ACTION], shape=(rotations.spec.action_dim,))
    return Plan(plan.keys, transform, rotations.spec, extra)


if __name__ == "__main__":
    sys.exit(run_verb("convert", sys.argv[1:]))
