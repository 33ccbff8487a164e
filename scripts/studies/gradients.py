"""Gradient norms over training, case by case: what stop-gradients and anchors buy on your data.

    flowleap gradients dataset=PATH task=pusht/keypoints
    flowleap gradients dataset=PATH 'only=[isd,esd]' steps=20000
    flowleap gradients dataset=PATH '+cases.isd-wide="objective=isd backbone.width=1024"' 'only=[isd,isd-wide]'

Each case is a `flowleap train` of its own with the same seed, data and steps; the norms are those before clipping.
What is finished is not repeated: an interrupted study goes on, and a changed one needs another `out`.
Writes `<results>/<name>.json` and a plot.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.files import write_results
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import command, logged, plain, say, show_table
from flowleap.scripts.studies.benchmark import TRAINING, evaluate, run_flowleap
from flowleap.scripts.studies.plots import gradient_norms

LOG_EVERY = 10


def main(cfg: DictConfig) -> dict[str, Any]:
    """Train every case, collect its gradient norms, evaluate it, and write the results."""
    names = list(cfg.only or cfg.cases)
    for name in names:
        if name not in cfg.cases:
            raise FlowleapError(f"only: no case {name!r} among {list(cfg.cases)}{suggest(name, cfg.cases)}")

    with ThreadPoolExecutor(cfg.parallel) as pool:
        done = pool.map(lambda name: _case(cfg, cfg.cases[name], Path(cfg.out) / name), names)
        outcomes = dict(zip(names, done, strict=True))
    cases = {name: case for name, (case, _) in outcomes.items()}
    results = {"command": command("gradients"), "config": plain(cfg), "cases": cases}
    path = write_results(Path(cfg.results) / f"{cfg.name}.json", results)
    curves = {name: rows for name, (_, rows) in outcomes.items()}
    picture = gradient_norms(curves, path.with_suffix(".png"))
    table = []
    for name, case in cases.items():
        score = "-" if case["score"] is None else f"{case['score']:.2f}"
        norms = (f"{case[key]:.3g}" for key in ("median", "q95", "largest"))
        table.append((name, *norms, case["ended"], score))
    show_table(("case", "median norm", "95 %", "largest", "ended", "score at NFE 1"), table)
    say(f"results: {path}, {picture}")
    return results


def _case(cfg: DictConfig, words: str, run_dir: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train one case unless it is finished; a training that stops on NaN is a result, not an error."""
    fixed = [f"task={cfg.task.name}", f"dataset={cfg.dataset}", f"run_dir={run_dir}", *TRAINING]
    trainer = [f"trainer.steps={cfg.steps}", f"trainer.seed={cfg.seed}", f"trainer.log_every={LOG_EVERY}"]
    ended, score, rows = "whole", None, logged(run_dir, "grad_norm")
    if not rows or rows[-1]["step"] < cfg.steps:
        shutil.rmtree(run_dir, ignore_errors=True)
        try:
            run_flowleap("train", *fixed, *trainer, *shlex.split(cfg.train), *shlex.split(words))
        except FlowleapError as error:
            if "NaN or infinite" not in str(error):
                raise
            ended = "NaN"
        rows = logged(run_dir, "grad_norm")
    if ended == "whole" and cfg.episodes:
        score = evaluate(cfg, run_dir, run_dir / "eval.json", "steps=1")["summary"]["headline"]["value"]
    norms = np.array([row["grad_norm"] for row in rows])
    largest = max(row.get("grad_norm_largest", row["grad_norm"]) for row in rows)
    case = {
        "overrides": words,
        "median": float(np.median(norms)),
        "q95": float(np.quantile(norms, 0.95)),
        "largest": float(largest),
        "median_last_quarter": float(np.median(norms[-max(1, len(norms) // 4) :])),
        "ended": ended,
        "score": score,
        "episodes": cfg.episodes,
    }
    reached = "" if score is None else f", score {score:.3f}"
    say(f"{run_dir.name}: median {case['median']:.3g}, largest {case['largest']:.3g}, {ended}{reached}")
    return case, rows


if __name__ == "__main__":
    sys.exit(run_verb("gradients"))
