"""Rewrite a dataset in another format; by default as a flowleap store: zarr v3, compressed, with checksums.

    flowleap convert source=pusht_cchi_v7_replay.zarr out=data/pusht.zarr

Reads every format that `flowleap list what=formats` shows, episode by episode. Images of whatever layout become
uint8 [height, width, 3]; `resize=[120,160]` makes them smaller. `keys=[...]` keeps some of the columns;
`fix=[angles,quaternions,idle,shift]` repairs what inspect finds of these. `task=pusht/keypoints` maps the recorded
columns to that task's observations instead. A conversion to zarr that was killed goes on where it stopped when the same
command is given again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flowleap.datasets.columns import ACTION
from flowleap.datasets.convert import Plan, convert, with_relative, with_repairs, with_rotations
from flowleap.datasets.dataset import Dataset, format_module, open_dataset, writable_formats
from flowleap.envs.conventions import in_actions_of
from flowleap.policy.core.errors import FlowleapError, UsageError, suggest
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import plain, selected, task_of

_SUFFIXES = {".hdf5": "robomimic", ".h5": "robomimic"}


def main(cfg: DictConfig) -> None:
    """Write `cfg.source` to `cfg.out`."""
    to = _target_format(cfg)
    chosen = selected(cfg) | ({"keys": None} if cfg.task else {})
    with open_dataset(cfg.source, cfg.format, fill_missing=cfg.fill_missing or None, **chosen) as source:
        _check_conversions(cfg)
        fix = [cfg.fix] if isinstance(cfg.fix, str) else plain(cfg.fix) or []
        plan = with_repairs(_corrected(_plan(source, cfg), cfg), source, fix)
        plan = with_relative(plan, cfg.actions_as, cfg.relative_to, plain(cfg.relative_dims))
        plan = with_rotations(plan, cfg.rotation, plain(cfg.rotation_dims), cfg.rotation_from)
        settings: dict[str, Any] = {}
        if to == "zarr":
            given = plain(cfg)
            given.pop("overwrite")
            settings = {"keep_interrupted": False, "job": json.dumps([source.fingerprint(), given])}
        elif to == "lerobot":
            settings = {"video": cfg.video}
        make = format_module(to).Writer
        with make(cfg.out, plan.spec, source.attrs, cfg.overwrite, extra=plan.extra, **settings) as writer:
            convert(source, plan, writer)
    print(f"{writer.path}: {writer.n_episodes} episodes, {writer.n_frames} frames")
    print(plan.spec.summary())


def _target_format(cfg: DictConfig) -> str:
    """The format to write: as asked, else by the suffix of the new path."""
    to: str = cfg.to or _SUFFIXES.get(Path(cfg.out).suffix, "zarr")
    known = writable_formats()
    if to not in known:
        raise UsageError(f"to={to} is none of {', '.join(known)}{suggest(to, known)}")
    if cfg.video and to != "lerobot":
        raise UsageError("video=true is for to=lerobot only")
    return to


def _check_conversions(cfg: DictConfig) -> None:
    """Refuse an option that would have no effect."""
    for verb, options in (
        ("actions_as", ("relative_to", "relative_dims")),
        ("rotation", ("rotation_dims", "rotation_from")),
    ):
        for option in options:
            if cfg[option] is not None and cfg[verb] is None:
                raise UsageError(f"{option} belongs to {verb}=..., which says what the actions are to be")


def _corrected(plan: Plan, cfg: DictConfig) -> Plan:
    """The plan with what the command line says of the recording."""
    asked = {"control_hz": float(cfg.control_hz or 0), "action_convention": cfg.action_convention}
    return plan._replace(spec=replace(plan.spec, **{key: value for key, value in asked.items() if value}))


def _plan(source: Dataset, cfg: DictConfig) -> Plan:
    """Return what to do with the columns, before rotations."""
    task = task_of(cfg.task)
    if task is None:
        extra = {key: column for key, column in source.extra.items() if cfg["keys"] is None or key == ACTION}
        return Plan(
            [*source.spec.observations, *(k for k in extra if k != ACTION), ACTION], dict, source.spec, extra
        )
    if cfg["keys"] is not None:
        raise FlowleapError("say task=... or keys=[...], not both: the task decides which columns are read")
    task = in_actions_of(task, source.spec)
    translate, read = task.recording.translate, task.recording.keys
    keys = task.spec.observations if translate is None else [key for key in read if key != ACTION]
    return Plan([*keys, ACTION], translate or dict, task.spec, {})


if __name__ == "__main__":
    sys.exit(run_verb("convert"))
