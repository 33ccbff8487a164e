"""Score against the delay of chunks, for each way to go over from one to the next.

    flowleap delay dataset=PATH task=probe/slalom steps=3000
    flowleap delay dataset=PATH task=pusht/keypoints 'train="encoder.noise=0.02"'

Trains a plain policy and one that goes on from given actions (`prefix=`) for each seed, and evaluates both at NFE 1
with chunks that arrive late. What is finished is not repeated. Writes a part of `<results>/<name>.json`, and a plot.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from flowleap.envs.registry import make_task
from flowleap.envs.rollout import Episode
from flowleap.envs.statistics import mean, mode_coverage, rate
from flowleap.policy.core.files import write_results
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import command, plain, say, show_table
from flowleap.scripts.studies.benchmark import TRAINING, run_flowleap
from flowleap.scripts.studies.plots import delay_curves


class _Way(NamedTuple):
    """How chunks go on: which of the two policies, and the options of `flowleap eval`."""

    prefix: bool
    continuity: str
    best_of: bool = False


WAYS = {
    "naive": _Way(False, "naive"),
    "ensemble": _Way(False, "ensemble"),
    "best_of": _Way(False, "best_of", True),
    "prefix": _Way(True, "prefix"),
    "prefix_best_of": _Way(True, "prefix", True),
}


def main(cfg: DictConfig) -> dict[str, Any]:
    """Train, evaluate, pool the seeds, write the results."""
    cases = [(seed, prefix) for seed, prefix in product(cfg.seeds, (False, True))]
    todo = [(seed, delay, way) for seed, delay, way in product(cfg.seeds, cfg.delays, WAYS)]
    with ThreadPoolExecutor(cfg.parallel) as pool:
        list(pool.map(lambda case: _train(cfg, *case), cases))
        found = list(pool.map(lambda case: _evaluate(cfg, *case), todo))
    rows = []
    for delay, way in product(cfg.delays, WAYS):
        parts = [part for (_, d, w), part in zip(todo, found, strict=True) if (d, w) == (delay, way)]
        rows.append({"way": way, "delay": delay, **_pooled(cfg, parts)})
    path = Path(cfg.results) / f"{cfg.name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    part = {"command": command("delay"), "config": plain(cfg), "table": rows}
    results = {"command": part["command"], "tasks": {**before.get("tasks", {}), cfg.task.name: part}}
    write_results(path, results)
    name = re.sub("[/:]", "-", cfg.task.name)
    picture = delay_curves(rows, cfg.task.name, path.with_name(f"{cfg.name}_{name}.png"))
    table = []
    for row in rows:
        success, jump = row["success"], row["jump"]["mean"]
        share = "" if row["entropy_share"] is None else f"{row['entropy_share']:.2f}"
        score = f"{row['score']['mean']:.3f}"
        table.append(
            (row["way"], row["delay"], score, f"{success['count']}/{success['n']}", f"{jump:.3g}", share)
        )
    show_table(("way", "delay", "score", "success", "jump", "entropy share"), table)
    say(f"results: {path}, {picture}")
    return results


def _run_dir(cfg: DictConfig, seed: int, prefix: bool) -> Path:
    name = re.sub("[/:]", "-", cfg.task.name)
    return Path(cfg.out) / f"{name}_{'prefix' if prefix else 'plain'}_seed{seed}"


def _train(cfg: DictConfig, seed: int, prefix: bool) -> None:
    run_dir = _run_dir(cfg, seed, prefix)
    if (run_dir / "done").exists():
        return
    shutil.rmtree(run_dir, ignore_errors=True)
    words = [f"task={cfg.task.name}", f"dataset={cfg.dataset}", f"run_dir={run_dir}", *TRAINING]
    words += [
        f"trainer.steps={cfg.steps}",
        f"trainer.seed={seed}",
        f"prefix={max(cfg.delays) if prefix else 0}",
    ]
    run_flowleap("train", *words, *shlex.split(cfg.train))
    (run_dir / "done").touch()


def _evaluate(cfg: DictConfig, seed: int, delay: int, way: str) -> dict[str, Any]:
    """The results of `flowleap eval` for one seed, delay and way."""
    prefix, continuity, best_of = WAYS[way]
    run_dir = _run_dir(cfg, seed, prefix)
    ends = delay in (min(cfg.delays), max(cfg.delays))
    episodes = cfg.episodes if ends else cfg.episodes_between
    out = run_dir / f"{way}_delay{delay}_{episodes}.json"
    if not out.exists():
        words = [f"checkpoint={run_dir}", "steps=1", f"episodes={episodes}", f"seed={cfg.eval_seed}"]
        words += [f"delay={delay}", f"execute={cfg.execute}", f"continuity={continuity}"]
        words += [f"best_of={cfg.best_of}"] if best_of else []
        run_flowleap("eval", *words, "n_envs=1", "videos=0", f"out={out}")
        say(out.name)
    results: dict[str, Any] = json.loads(out.read_text())
    return results


def _pooled(cfg: DictConfig, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of the table: the episodes of all training seeds together, and the score of each."""
    metric = parts[0]["summary"]["headline"]["metric"]
    rows = [row for part in parts for row in part["rows"]]
    modes = make_task(cfg.task.name).scoring.modes
    share = None
    if modes:
        episodes = [Episode(**{k: v for k, v in row.items() if k != "motion"}) for row in rows]
        share = mode_coverage(episodes, modes)["entropy_share"]
    moved = [row["motion"] for row in rows if "motion" in row]
    return {
        "score": mean([float(row[metric]) for row in rows]),
        "score_of_seeds": [float(np.mean([float(row[metric]) for row in part["rows"]])) for part in parts],
        "success": rate([row["success"] for row in rows]),
        "jump": mean([each["jump"] for each in moved]),
        "interior": mean([each["interior"] for each in moved]),
        "entropy_share": share,
    }


if __name__ == "__main__":
    sys.exit(run_verb("delay"))
