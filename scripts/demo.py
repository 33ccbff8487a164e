"""The whole path on one simulated task: collect, train, evaluate, export, evaluate the export, and a report.

flowleap demo                                      MetaWorld, offline, in minutes on two cores
flowleap demo task=probe/slalom                    with the core alone: `pip install flowleap`
flowleap demo task=metaworld/door-open-v3 out=demo_door
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from flowleap.datasets.dataset import open_dataset
from flowleap.envs.registry import make_task
from flowleap.envs.report import format_line
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results
from flowleap.scripts import collect, evaluate, export, train
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.cli.run import compose
from flowleap.scripts.common import say, timed
from flowleap.scripts.studies import plots

MARKER = ".flowleap-demo"  # only a folder that an earlier demo made is replaced

# What a task with several good ways is trained with: sharper times, and chunks long enough to stay on the way taken.
SEVERAL_WAYS = ("backbone.max_frequency=30", "n_action_steps=16")


def main(cfg: DictConfig) -> dict[str, Any]:
    """Run the demo into `cfg.out`; return what results.json holds."""
    from flowleap.policy.policy import Policy

    console, start = Console(), time.perf_counter()
    out = _fresh_folder(Path(cfg.out))
    task = make_task(cfg.task.name, **cfg.task.kwargs)
    several = bool(task.scoring.modes)
    demonstrations = cfg.demonstrations or (200 if several else 50)  # each way needs its own
    data, run = out / "data.zarr", out / "run"
    seconds: dict[str, float] = {}

    def stage(name: str, verb: Any, *overrides: str) -> Any:
        word = name.split()[0]
        console.rule(f"[bold]flowleap {word}[/] {' '.join(overrides)}", align="left")
        result, wall, _ = timed(lambda: verb.main(compose(word, overrides)))
        seconds[name] = round(wall, 1)
        return result

    named, seed = f"task={cfg.task.name}", f"seed={cfg.seed}"
    stage("collect", collect, named, f"episodes={demonstrations}", f"out={data}", seed)
    training = (f"trainer.steps={cfg.train_steps}", f"trainer.batch_size={cfg.batch_size}", f"trainer.{seed}")
    ways = SEVERAL_WAYS if several else ()
    stage("train", train, named, f"dataset={data}", f"run_dir={run}", *training, *ways)

    def roll_out(name: str, kind: str, *which: str) -> dict[str, Any]:
        episodes = (f"episodes={cfg.episodes}", f"out={out}/eval_{kind}.json")
        result = stage(name, evaluate, *which, *episodes)
        return {"nfe": result["nfe"], **result["summary"]}

    in_torch = roll_out("eval", "torch", f"checkpoint={run}", "steps=1", "videos=1")
    exported = stage("export", export, f"checkpoint={run}", "steps=1", f"out={out}/export")
    of_export = roll_out("eval (export)", "export", f"checkpoint={exported}", "videos=0")
    policy = Policy.load(run)
    spec, dataset = policy.spec, load_columns(task, open_dataset(data))
    windows = dataset.windows(spec.n_obs_steps, spec.horizon, spec.n_action_steps)
    plots.training_curve(run, out / "training.png")
    plots.action_chunks(policy, windows, out / "chunks.png")
    seconds["total"] = round(time.perf_counter() - start, 1)
    results: dict[str, Any] = {
        "command": "flowleap demo",
        "seconds": seconds,
        "demonstrations": demonstrations,
        "train": {"steps": cfg.train_steps, "batch_size": cfg.batch_size, "seed": cfg.seed},
        "torch": in_torch,
        "export": of_export,
    }
    write_results(out / "results.json", results)
    (out / "README.md").write_text(_report(cfg, results))
    console.rule("[bold]done", align="left")
    for name in ("torch", "export"):
        say(f"{name}: NFE {results[name]['nfe']} | {format_line(results[name])}")
    say(f"{seconds['total']:.0f} s in all; results, curve, video and chunk plot: {out}/README.md")
    return results


def _fresh_folder(out: Path) -> Path:
    """Create `out` empty; replace it only if an earlier demo made it."""
    if out.exists():
        if not (out / MARKER).exists():
            raise FlowleapError(f"{out} exists and is no demo's folder: choose another one with out=NAME")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()
    return out


def _report(cfg: DictConfig, results: dict[str, Any]) -> str:
    """The demo's page: a table, the plots, where the video is."""
    rows = []
    for name in ("torch", "export"):
        row = results[name]
        success, (low, high) = row["success"], row["success"]["interval"]
        rows.append(
            f"| {name} | {row['nfe']} | {success['count']}/{success['n']} | {low:.2f} to {high:.2f} "
            f"| {row['latency_ms']['p50']:.2f} ms | {row['seconds']['wall']:.0f} s |"
        )
    times = ", ".join(f"{name} {value:.0f} s" for name, value in results["seconds"].items())
    rollout = "No video: it needs `pip install 'flowleap[video]'` and, for most simulators, OpenGL (`flowleap doctor`)."
    for video in Path(cfg.out).glob("*.mp4"):
        rollout = f"Rollout: [{video.name}]({video.name})"
    return f"""\
# {cfg.task.name}: {results["demonstrations"]} scripted demonstrations, {cfg.train_steps} steps, one network call

| policy | NFE | success | 95 % Wilson | latency p50 | evaluation |
|---|---|---|---|---|---|
{rows[0]}
{rows[1]}

Training seeds from {cfg.seed}, evaluation seeds from 100000: {results["torch"]["seed_note"]}

Time: {times}.

![training](training.png)
![action chunks](chunks.png)

{rollout}
"""


if __name__ == "__main__":
    sys.exit(run_verb("demo"))
