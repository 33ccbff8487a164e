"""Train and evaluate objectives on equal terms: same network, gradient steps, data, training and evaluation seeds.

    flowleap benchmark task=pusht/keypoints dataset=PATH
    flowleap benchmark task=metaworld/push-v3 dataset=PATH objectives=[isd] nfe.isd=[1] seeds=[0]

Rows run in processes of their own, one CPU thread each. What is finished is not repeated, so an interrupted
benchmark goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from flowleap.envs.report import bootstrap_mean, wilson, write_results
from flowleap.policy.spec import FlowleapError

TIMING = "train_seconds.json"


@dataclass(frozen=True)
class Row:
    """One training run and the NFEs it is evaluated at."""

    objective: str
    seed: int
    nfes: tuple[int, ...]
    train: tuple[str, ...]
    run_dir: Path


def main(cfg: DictConfig) -> dict[str, Any]:
    """Run all rows, write `<results>/<name>.json`, print the table, and return the results."""
    if cfg.get("task") is None or cfg.parallel < 1:
        raise FlowleapError("benchmark needs task=NAME and parallel >= 1")
    rows = [
        Row(
            objective,
            seed,
            tuple(cfg.nfe.get(objective, [1])),
            (*shlex.split(cfg.train), *shlex.split(cfg.own.get(objective, ""))),
            Path(cfg.out) / f"{objective}_seed{seed}",
        )
        for seed in cfg.seeds
        for objective in cfg.objectives
    ]
    console = Console()
    with ThreadPoolExecutor(cfg.parallel) as pool:
        evaluations = [
            result for results in pool.map(lambda row: _run(cfg, row, console), rows) for result in results
        ]
    results = {
        "command": "flowleap benchmark " + shlex.join(_given(cfg)),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "table": _aggregate(evaluations, cfg.episodes),
        "paired_differences": _differences(evaluations),
        "runs": [{key: value for key, value in e.items() if key != "rows"} for e in evaluations],
    }
    path = write_results(Path(cfg.results) / f"{cfg.name.replace('/', '_')}.json", results)
    _print(console, results, path)
    return results


def _given(cfg: DictConfig) -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _run(cfg: DictConfig, row: Row, console: Console) -> list[dict[str, Any]]:
    """Train one row unless it is finished, evaluate it at every NFE, and return one record each."""
    timing = row.run_dir / TIMING
    if not timing.exists():
        start = time.perf_counter()
        if (row.run_dir / "checkpoints" / "last").exists():
            _flowleap("train", f"resume={row.run_dir}")
        else:
            words = [f"task={cfg.task.name}", f"dataset={cfg.dataset}", f"run_dir={row.run_dir}"]
            own = [f"objective={row.objective}", f"trainer.seed={row.seed}", "trainer.threads=1"]
            _flowleap("train", *words, *own, "trainer.device=cpu", "trainer.progress=false", *row.train)
        timing.write_text(json.dumps(time.perf_counter() - start))
        console.print(
            f"trained {row.run_dir} in {json.loads(timing.read_text()) / 60:.1f} min", highlight=False
        )
    records = []
    for nfe in row.nfes:
        file = (
            row.run_dir
            / "eval"
            / f"nfe{nfe}_ta{cfg.n_action_steps or 'task'}_{cfg.eval_seed}x{cfg.episodes}.json"
        )
        if not file.exists():
            words = [
                f"checkpoint={row.run_dir}",
                f"steps={nfe}",
                f"episodes={cfg.episodes}",
                f"seed={cfg.eval_seed}",
            ]
            ta = "null" if cfg.n_action_steps is None else cfg.n_action_steps
            _flowleap("eval", *words, f"n_action_steps={ta}", "n_envs=1", "videos=0", f"out={file}")
        result = json.loads(file.read_text())
        records.append(
            {
                "objective": row.objective,
                "nfe": nfe,
                "seed": row.seed,
                "train_minutes": round(json.loads(timing.read_text()) / 60, 2),
                "parameters": result["actor"]["parameters"],
                "summary": result["summary"],
                "rows": result["rows"],
            }
        )
    return records


def _flowleap(verb: str, *words: str) -> None:
    """Run a verb in a process of its own on one CPU thread; its error line becomes ours."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flowleap.scripts.cli", verb, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise FlowleapError(f"flowleap {verb} {' '.join(words)} failed: {done.stderr.strip()[-800:]}")


def _scores(evaluations: Sequence[dict[str, Any]], field: str) -> np.ndarray:
    """Per-episode values [training seeds, evaluation seeds] of one objective and NFE."""
    return np.array([[float(episode[field]) for episode in e["rows"]] for e in evaluations])


def _groups(evaluations: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for e in evaluations:
        groups.setdefault((e["objective"], e["nfe"]), []).append(e)
    return groups


def _aggregate(evaluations: Sequence[dict[str, Any]], episodes: int) -> list[dict[str, Any]]:
    """One line per objective and NFE: mean and spread over training seeds, pooled intervals."""
    table = []
    for (objective, nfe), group in _groups(evaluations).items():
        reward, success = _scores(group, "max_reward"), _scores(group, "success")
        per_seed = reward.mean(1)
        count, n = int(success.sum()), success.size
        table.append(
            {
                "objective": objective,
                "nfe": nfe,
                "training_seeds": len(group),
                "episodes_per_seed": episodes,
                "mean_max_reward": float(per_seed.mean()),
                "per_seed": [float(x) for x in per_seed],
                "seed_sd": float(per_seed.std(ddof=1)) if len(group) > 1 else None,
                "interval_over_episodes": list(bootstrap_mean(reward.mean(0))),
                "success": {"count": count, "n": n, "rate": count / n, "interval": list(wilson(count, n))},
                "train_minutes": [e["train_minutes"] for e in group],
                "latency_ms_p50": float(np.median([e["summary"]["latency_ms"]["p50"] for e in group])),
            }
        )
    return table


def _differences(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first objective at its first NFE against every other cell, paired by evaluation seed."""
    groups = _groups(evaluations)
    reference, *others = groups
    base = _scores(groups[reference], "max_reward").mean(0)
    rows = []
    for other in others:
        difference = base - _scores(groups[other], "max_reward").mean(0)
        rows.append(
            {
                "a": list(reference),
                "b": list(other),
                "metric": "max_reward",
                "mean": float(difference.mean()),
                "interval": list(bootstrap_mean(difference)),
            }
        )
    return rows


def _print(console: Console, results: dict[str, Any], path: Path) -> None:
    table = Table(
        "objective", "NFE", "mean max reward", "per training seed", "success", "train min", "ms a chunk"
    )
    for row in results["table"]:
        low, high = row["interval_over_episodes"]
        success = row["success"]
        table.add_row(
            row["objective"],
            str(row["nfe"]),
            f"{row['mean_max_reward']:.3f} [{low:.3f}, {high:.3f}]",
            " ".join(f"{x:.3f}" for x in row["per_seed"]),
            f"{success['count']}/{success['n']}",
            f"{np.mean(row['train_minutes']):.1f}",
            f"{row['latency_ms_p50']:.2f}",
        )
    console.print(table)
    for row in results["paired_differences"]:
        low, high = row["interval"]
        console.print(
            f"{row['a']} - {row['b']}: {row['mean']:+.3f} [{low:+.3f}, {high:+.3f}]", highlight=False
        )
    console.print(f"results: {path}", highlight=False)


if __name__ == "__main__":
    from flowleap.scripts.cli import run_verb

    sys.exit(run_verb("benchmark", sys.argv[1:]))
