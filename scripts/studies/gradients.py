"""Gradient norms over training, case by case: what stop-gradients and anchors buy on your data.

    flowleap gradients dataset=PATH task=pusht/keypoints
    flowleap gradients dataset=PATH 'only=[isd,esd]' steps=20000
    flowleap gradients dataset=PATH '+cases.isd-wide="objective=isd backbone.width=1024"' 'only=[isd,isd-wide]'

Each case is a `flowleap train` of its own with the same seed, data and steps; the norms are those before clipping.
What is finished is not repeated: an interrupted study goes on, and a changed one needs another `out`.
Writes `<results>/<name>.json` and a plot.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.files import write_results
from flowleap.scripts.cli.compose import given_overrides
from flowleap.scripts.studies.benchmark import run_flowleap
from flowleap.scripts.studies.plots import gradient_norms

LOG_EVERY = 10


def main(cfg: DictConfig) -> dict[str, Any]:
    """Train every case, collect its gradient norms, evaluate it, and write the results."""
    console = Console()
    names = list(cfg.only or cfg.cases)
    for name in names:
        if name not in cfg.cases:
            raise FlowleapError(f"only: no case {name!r} among {list(cfg.cases)}{suggest(name, cfg.cases)}")

    def run(name: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
        case, rows = _case(cfg, cfg.cases[name], Path(cfg.out) / name)
        console.print(f"{name}: {_line(case)}", highlight=False)
        return case, rows

    with ThreadPoolExecutor(cfg.parallel) as pool:
        outcomes = dict(zip(names, pool.map(run, names), strict=True))
    cases = {name: case for name, (case, _) in outcomes.items()}
    curves = {name: rows for name, (_, rows) in outcomes.items()}
    results = {
        "command": "flowleap gradients " + shlex.join(given_overrides()),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "cases": cases,
    }
    path = write_results(Path(cfg.results) / f"{cfg.name}.json", results)
    picture = gradient_norms(curves, path.with_suffix(".png"))
    table = Table("case", "median norm", "95 %", "largest", "ended", "score at NFE 1")
    for name, case in cases.items():
        score = "-" if case["score"] is None else f"{case['score']:.2f}"
        norms = (f"{case[key]:.3g}" for key in ("median", "q95", "largest"))
        table.add_row(str(name), *norms, case["ended"], score)
    console.print(table)
    console.print(f"results: {path}, {picture}", highlight=False)
    return results


def _case(cfg: DictConfig, words: str, run_dir: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train one case unless it is finished; a training that stops on NaN is a result, not an error."""
    fixed = [f"task={cfg.task.name}", f"dataset={cfg.dataset}", f"run_dir={run_dir}"]
    trainer = [f"trainer.steps={cfg.steps}", f"trainer.seed={cfg.seed}", f"trainer.log_every={LOG_EVERY}"]
    quiet = ["trainer.progress=false", "trainer.device=cpu", "trainer.threads=1"]
    ended = "whole"
    if not (rows := _norms(run_dir)) or rows[-1]["step"] < cfg.steps:
        shutil.rmtree(run_dir, ignore_errors=True)
        try:
            run_flowleap("train", *fixed, *trainer, *quiet, *shlex.split(cfg.train), *shlex.split(words))
        except FlowleapError as error:
            if "NaN or infinite" not in str(error):
                raise
            ended = "NaN"
        rows = _norms(run_dir)
    norms = np.array([row["grad_norm"] for row in rows])
    score = None
    if ended == "whole" and cfg.episodes:
        out = run_dir / "eval.json"
        episodes = [f"episodes={cfg.episodes}", f"seed={cfg.eval_seed}", "steps=1", "n_envs=1", "videos=0"]
        if not out.exists():
            run_flowleap("eval", f"checkpoint={run_dir}", *episodes, f"out={out}")
        score = json.loads(out.read_text())["summary"]["headline"]["value"]
    quarter = max(1, len(norms) // 4)
    case = {
        "overrides": words,
        "median": float(np.median(norms)),
        "q95": float(np.quantile(norms, 0.95)),
        "largest": float(norms.max()),
        "median_last_quarter": float(np.median(norms[-quarter:])),
        "ended": ended,
        "score": score,
        "episodes": cfg.episodes,
    }
    return case, rows


def _norms(run_dir: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl` with a gradient norm; none if there is no run."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [row for row in map(json.loads, lines) if "grad_norm" in row]


def _line(case: dict[str, Any]) -> str:
    score = "" if case["score"] is None else f", score {case['score']:.3f}"
    return f"median {case['median']:.3g}, largest {case['largest']:.3g}, {case['ended']}{score}"


if __name__ == "__main__":
    from flowleap.scripts.cli.main import run_verb

    sys.exit(run_verb("gradients", sys.argv[1:]))
