"""Score against perturbations, a curve each: noise, lost observations, late actions, other starts, friction, masses.

flowleap robustness checkpoint=RUN_DIR
flowleap robustness checkpoint=RUN_DIR what=[obs_noise,drop] episodes=100 strengths.drop=[0,0.5]

Evaluates as `flowleap eval checkpoint=RUN_DIR drop=0.5` does, at each strength, on the same episodes; writes one JSON
and a picture.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from flowleap.envs.actors import load_actor
from flowleap.envs.perturb import KINDS, available
from flowleap.policy.core.errors import FlowleapError, UsageError, suggest
from flowleap.policy.core.files import write_results
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.cli.run import compose
from flowleap.scripts.common import command, plain, recorded_task, run_dir_of, say, task_of
from flowleap.scripts.evaluate import prepare, run
from flowleap.scripts.studies.plots import robustness_curves
from flowleap.scripts.sweeps import show_sweep, sweep


def main(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate every strength of every kind, print the table, write JSON and picture, and return the JSON's content."""
    kinds = _kinds(cfg)
    single = compose("eval", [f"checkpoint={cfg.checkpoint}"])
    with open_dict(single):  # where there is no task, there is no such key
        single.update({key: cfg[key] for key in cfg if key in single or key == "task"})
    # What changes nothing is the same evaluation for every kind, and run once.
    strengths = {kind: [_neutral(kind, strength) for strength in cfg.strengths[kind]] for kind in kinds}
    cases = [{kind: strength} for kind in kinds for strength in strengths[kind] if strength is not None]
    unchanged = any(None in values for values in strengths.values())
    rows = sweep(single, [*([{}] if unchanged else []), *cases], lambda one: run(prepare(one), one))
    curves = {kind: _curve(kind, rows) for kind in kinds}
    results = {"command": command("robustness"), "config": plain(cfg), "curves": curves, "evaluations": rows}
    show_sweep(rows)
    task = rows[0]["summary"]["task"]
    default = f"eval/{re.sub('[/:]', '-', task)}_robustness.json"
    out = Path(cfg.out) if cfg.out else run_dir_of(Path(rows[0]["actor"]["path"])) / default
    metric, nfe = rows[0]["summary"]["headline"]["metric"], rows[0]["nfe"]
    write_results(out, results)
    picture = robustness_curves(curves, metric, f"{task}, NFE {nfe}", out.with_suffix(".png"))
    say(f"results: {out}, {picture}")
    return results


def _kinds(cfg: DictConfig) -> list[str]:
    """The kinds of perturbation that are asked for, or else those that the task can have.

    Raises:
        UsageError: an unknown kind.
        FlowleapError: a strength is missing, or the policy names no task.
    """
    wanted = plain(cfg.what)
    if wanted is None:
        task = task_of(cfg.get("task")) or recorded_task(load_actor(cfg.checkpoint).task)
        if task is None:
            raise FlowleapError(
                "this policy was trained without a task: add task=NAME (`flowleap list what=tasks`)"
            )
        wanted = available(task)
    for kind in [wanted] if isinstance(wanted, str) else wanted:
        if kind not in KINDS:
            raise UsageError(f"what={kind} is none of {', '.join(KINDS)}{suggest(str(kind), KINDS)}")
    kinds = list(dict.fromkeys([wanted] if isinstance(wanted, str) else wanted))
    if not kinds or not all(cfg.strengths[kind] for kind in kinds):
        raise FlowleapError(
            "nothing to evaluate: what=[...] and the strengths of each kind must not be empty"
        )
    return kinds


def _neutral(kind: str, strength: float) -> float | None:
    """The strength; None where it changes nothing."""
    return None if strength == KINDS[kind].default else strength


def _curve(kind: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Strength, score and its interval, of the evaluations of a kind and the unchanged one, by strength."""
    own = [row for row in rows if not row["options"] or kind in row["options"]]
    points = [
        {
            "strength": row["options"].get(kind, KINDS[kind].default),
            "score": row["summary"]["headline"]["value"],
            "interval": row["summary"]["headline"]["interval"],
            "success": row["summary"]["success"],
        }
        for row in own
    ]
    return sorted(points, key=lambda point: float(point["strength"]))


if __name__ == "__main__":
    sys.exit(run_verb("robustness"))
