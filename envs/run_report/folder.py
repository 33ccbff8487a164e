"""What lies in the folder of a training run: configuration, metrics, checkpoints, evaluations; and what is missing.

Files may be of other versions, of other programs, or cut off: what cannot be read is named, the rest is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flowleap.envs.run_report.results import Evaluation, offline_of, robustness_of
from flowleap.policy.core.errors import FlowleapError, suggest

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Problem:
    """Something that the page cannot show, and what would change that."""

    text: str
    remedy: str


@dataclass
class RunFolder:
    """A training run as its files describe it.

    Attributes:
        path: the folder.
        config: what it was trained with; empty if nobody knows.
        metrics: rows of training metrics, each with `step`.
        evaluations: results of `flowleap eval` in simulation.
        offline: results of `flowleap eval dataset=...`.
        robustness: curves of `flowleap robustness`.
        checkpoints: training step -> directory.
        problems: what is missing or damaged.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    offline: list[Mapping[str, Any]] = field(default_factory=list)
    robustness: list[Mapping[str, Any]] = field(default_factory=list)
    checkpoints: dict[int, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.path.resolve().name

    def logged(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a training metric."""
        rows = [row for row in self.metrics if key in row]
        return [row["step"] for row in rows], [row[key] for row in rows]

    @cached_property
    def headline(self) -> Evaluation | None:
        """The evaluation to be quoted: of the last checkpoint's averaged weights, plainly run, at the fewest NFE.

        Of several such, the one with the most episodes. A checkpoint that was evaluated more often, or scored better,
        does not come before the last one.
        """
        return min(self.evaluations, key=Evaluation.precedence, default=None)


def read_run(path: Path) -> RunFolder:
    """Read the folder of a run, or an exported folder.

    Raises:
        FlowleapError: there is no such folder, or nothing in it is of a run.
    """
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        what = "is a file" if path.exists() else "does not exist"
        raise FlowleapError(
            f"'{path}' {what}: name the folder of a run (run_dir){suggest(path.name, siblings)}"
        )
    if path.resolve().parent.name == "checkpoints":
        raise FlowleapError(f"'{path}' is a checkpoint: name its run, {path.resolve().parent.parent}")
    run = RunFolder(path)
    found = [
        _read_config(run, path / CONFIG),
        _read_metrics(run, path / METRICS),
        _read_checkpoints(run, path / "checkpoints"),
        _read_results(run),
    ]
    if not any(found) and not (path / "export.json").is_file():
        inside = sorted(p.parent.name for p in path.glob(f"*/{CONFIG}"))
        hint = f"; runs inside of it: {', '.join(inside[:8])}" if inside else ""
        raise FlowleapError(
            f"'{path}' is no run: it has no {CONFIG}, {METRICS}, checkpoints or eval/*.json{hint}"
        )
    _say_what_is_missing(run)
    return run


def _read_config(run: RunFolder, file: Path) -> bool:
    from omegaconf import OmegaConf

    if not file.is_file():
        return False
    try:
        read = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
        if not isinstance(read, dict):
            raise ValueError("it holds no options")
        run.config = {str(key): value for key, value in read.items()}
    except Exception as error:  # yaml and OmegaConf have kinds of their own
        run.problems.append(Problem(f"{file} cannot be read: {_short(error)}", "its options are not shown"))
    return True


def _read_metrics(run: RunFolder, file: Path) -> bool:
    if not file.is_file():
        return False
    bad: list[int] = []
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = {str(k): float(v) for k, v in json.loads(line).items()}
                run.metrics.append(row | {"step": float(row["step"])})
            except _UNREADABLE:
                bad.append(number)
    if bad:
        where = f"line {bad[0]}" + (f" and {len(bad) - 1} more" if bad[1:] else "")
        text = f"{file}: {where} cannot be read"
        run.problems.append(Problem(text, "the curves are drawn from the other lines"))
    return True


def _read_checkpoints(run: RunFolder, folder: Path) -> bool:
    for path in sorted(folder.glob("step_*")):
        if (step := re.fullmatch(r"step_(\d+)", path.name)) and (path / "policy.json").is_file():
            run.checkpoints[int(step[1])] = path
    return folder.is_dir()


def _read_results(run: RunFolder) -> bool:
    files = sorted([*run.path.glob("eval/**/*.json"), *run.path.glob("export*/eval/**/*.json")])
    for file in files:
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if "offline" in data:
                run.offline.append(offline_of(file.relative_to(run.path), data))
            else:
                told = {"command": data.get("command")}
                parts = data.get("evaluations", [data])
                run.evaluations += [Evaluation.of(file, told | part) for part in parts]
            if "curves" in data:
                run.robustness.append(robustness_of(data))
        except json.JSONDecodeError as error:
            text = f"{file} is damaged: {_short(error)}"
            run.problems.append(Problem(text, "remove it, or evaluate again"))
        except _UNREADABLE as error:
            text = f"{file} holds no results that this page can show: {_short(error)}"
            run.problems.append(Problem(text, "remove it, or evaluate again"))
    return bool(files)


def _say_what_is_missing(run: RunFolder) -> None:
    place = run.path
    if not run.evaluations:
        text = f"{run.name} has not been evaluated in simulation: no score is known"
        run.problems.append(Problem(text, f"flowleap eval checkpoint={place}"))
    if not run.evaluations and not run.offline:
        text = f"{run.name} has not been compared with recorded actions either"
        run.problems.append(Problem(text, f"flowleap eval checkpoint={place} dataset=PATH"))
    if not run.metrics:
        text = f"{run.name} has no training curves: {METRICS} is not there or empty"
        run.problems.append(Problem(text, "the whole folder that flowleap train wrote has it"))
    losses = run.logged("loss")[1]
    if bad := sum(not math.isfinite(loss) for loss in losses):
        text = f"the training loss of {run.name} is NaN or infinite in {bad} of {len(losses)} rows"
        run.problems.append(Problem(text, "the batch is in its folder nan, if it stopped there"))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
