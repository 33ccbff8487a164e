"""Write a page about training runs: scores with intervals, curves, failures on video, latency, options.

    flowleap report runs/pusht
    flowleap report runs/isd runs/flow_matching out=report.html

One HTML file that shows its plots and videos without the network, on a phone, too. It reads what `flowleap train` and
`flowleap eval` left in the run's folder; what is missing is named, with the command that makes it. Failed episodes are
run again with the renderer on: `videos=0` leaves that out.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flowleap.datasets.quality.web_page import check_name, write_page
from flowleap.envs.actors import EXPORT_MANIFEST
from flowleap.envs.rollout import record_episode
from flowleap.envs.run_report.failures import Gallery, failures, gallery
from flowleap.envs.run_report.folder import RunFolder, read_run
from flowleap.envs.run_report.page import render
from flowleap.envs.run_report.results import Evaluation
from flowleap.policy.core.errors import FlowleapError, UsageError, require_int, require_number
from flowleap.scripts import evaluate
from flowleap.scripts.cli.again import command_of
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.cli.paths import escaped
from flowleap.scripts.cli.run import compose
from flowleap.scripts.common import asked_imports, plain, say


def main(cfg: DictConfig) -> Path:
    """Write the page about `cfg.runs`; return where it is."""
    given = plain(cfg.runs)
    paths = [Path(str(path)).expanduser() for path in (given if isinstance(given, list) else [given])]
    if not paths:
        raise UsageError("'runs' is required: flowleap report RUN_DIR ...")
    count = require_int("videos", cfg.videos, 0, 100)
    budget = int(require_number("megabytes", cfg.megabytes, 0, 1000) * 1e6)
    page = check_name("out", cfg.out or _place(paths))
    runs = [read_run(path) for path in paths]
    galleries = []
    for run in runs:
        if run.headline is not None and count:
            galleries.append(_gallery(run, run.headline, count, budget // len(runs)))
    write_page("out", page, render(runs, galleries, [_commands(run) for run in runs]))
    for problem in (problem for run in runs for problem in run.problems):
        say(f"{problem.text}: {problem.remedy}")
    for made in galleries:
        say(f"{made.title}: {len(made.films)} shown; {made.note}")
    say(f"written: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    return page


def _place(paths: list[Path]) -> Path:
    """Where a page about some runs goes."""
    return (
        Path(os.path.commonpath([os.path.abspath(path) for path in paths])) if paths[1:] else paths[0]
    ) / "report.html"


def _gallery(run: RunFolder, evaluation: Evaluation, count: int, budget: int) -> Gallery:
    """The failures of a run's quoted evaluation, run again as they were evaluated."""
    title = f"{run.name}, {evaluation.task}, protocol {evaluation.protocol}"
    if not failures(evaluation):
        return Gallery(title, note="no failed episodes are noted")
    try:
        again = evaluate.prepare(_as_evaluated(run, evaluation))
        record = partial(record_episode, again.task, again.act, again.spec, **again.options)
        hz = again.task.spec.control_hz
        return gallery(title, evaluation, record, hz, count, budget)
    except FlowleapError as error:
        return Gallery(title, note=f"No pictures: {error}.")


def _as_evaluated(run: RunFolder, evaluation: Evaluation) -> DictConfig:
    """The configuration of `flowleap eval` that a results file notes, with the policy where it is now."""
    options: Mapping[str, Any] = evaluation.data.get("config") or {}
    if asked_imports(options.get("task")):
        raise FlowleapError("its task imports modules, which a results file may not ask for")
    cfg = compose("eval", [f"task={options['task']['name']}"] if options.get("task") else [])
    for key, value in options.items():
        if key in cfg and not isinstance(cfg[key], DictConfig):
            OmegaConf.update(cfg, key, escaped(value))
    for key, value in ((options.get("task") or {}).get("kwargs") or {}).items():
        OmegaConf.update(cfg, f"task.kwargs.{key}", escaped(value), force_add=True)
    cfg.checkpoint = escaped(str(_policy(run, evaluation)))
    cfg.steps, cfg.checkpoint_steps = None if evaluation.exported else evaluation.nfe, None
    return cfg


def _policy(run: RunFolder, evaluation: Evaluation) -> Path:
    """The checkpoint or the export that was evaluated, in the run's folder as it is now."""
    if evaluation.exported:
        for folder in evaluation.file.parents:
            if (folder / EXPORT_MANIFEST).is_file():
                return folder
        raise FlowleapError(f"the export that was evaluated is not beside {evaluation.file}")
    if evaluation.step in run.checkpoints:
        return run.checkpoints[evaluation.step]
    raise FlowleapError(
        f"the checkpoint of step {evaluation.step} that was evaluated is no longer in {run.path}"
    )


def _commands(run: RunFolder) -> list[str]:
    """What trains the run again, and makes each of its results."""
    lines = [command_of("train", {**run.config, "resume": None})] if run.config else []
    for evaluation in run.evaluations:
        known = evaluation.data.get("command")
        config = evaluation.data.get("config")
        if isinstance(known, str):
            lines.append(known)
        elif isinstance(config, dict):
            lines.append(command_of("eval", config))
    lines += [str(found["command"]) for found in run.offline if found["command"]]
    again = f"flowleap report {shlex.quote(str(run.path))}"
    return [*dict.fromkeys(lines), again]


if __name__ == "__main__":
    sys.exit(run_verb("report"))
