"""Roll a policy out in simulation: seeded episodes, intervals, a results JSON, videos.

flowleap eval checkpoint=RUN_DIR
flowleap eval checkpoint=RUN_DIR episodes=100 steps=1 videos=2
flowleap eval checkpoint=EXPORTED_DIR              the exported policy, without torch
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from flowleap.envs.actors import LoadedActor, load_actor
from flowleap.envs.registry import make_task
from flowleap.envs.rendering import save_video
from flowleap.envs.report import episode_rows, format_line, format_modes, summary
from flowleap.envs.rollout import record_episode, rollout
from flowleap.envs.task import Task
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results
from flowleap.policy.training.metrics import progress_bar


def main(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate `cfg.checkpoint`; print one line, write the results JSON, and return its content."""
    actor = load_actor(cfg.checkpoint, cfg.steps, cfg.weights, cfg.device, cfg.threads, cfg.n_action_steps)
    task = _task(cfg, actor)
    actor.spec.require_match(task.spec, f"checkpoint {cfg.checkpoint}", f"task {task.name}")
    seeds = range(cfg.seed, cfg.seed + cfg.episodes)
    n_envs = cfg.n_envs or os.cpu_count() or 1
    with progress_bar(0, len(seeds), f"eval {task.name}", enabled=True) as advance:
        done = successes = 0

        def on_progress(episode: Any) -> None:
            nonlocal done, successes
            done, successes = done + 1, successes + episode.success
            advance(done, f"success {successes}/{done}")

        result = rollout(task, actor.act, actor.spec, seeds, n_envs, cfg.batched, on_progress)
    report = summary(result, task)
    out = Path(cfg.out) if cfg.out else _default_out(actor, task)
    console = Console()
    console.print(f"NFE {actor.nfe} | {format_line(report)}", highlight=False, soft_wrap=True)
    if "modes" in report:
        console.print(format_modes(report["modes"]), highlight=False, soft_wrap=True)
    console.print(f"seeds {seeds.start}..{seeds.stop - 1}: {task.seed_note}", highlight=False, soft_wrap=True)
    results = {
        "nfe": actor.nfe,
        "summary": report,
        "seeds": {"first": seeds.start, "count": len(seeds)},
        "spec": actor.spec.to_dict(),
        "actor": {"path": str(cfg.checkpoint), **actor.describe},
        "config": OmegaConf.to_container(cfg, resolve=True),
        "rows": episode_rows(result),
    }
    console.print(f"results: {write_results(out, results)}", highlight=False, soft_wrap=True)
    for seed in seeds[: cfg.videos]:
        path = out.with_name(f"{out.stem}_seed{seed}.mp4")
        try:
            frames, _ = record_episode(task, actor.act, actor.spec, seed)
            save_video(path, frames, fps=task.spec.control_hz or 10)
        except FlowleapError as error:  # no GL backend, no imageio: the scores stand, the pictures do not
            console.print(f"no video: {error}", highlight=False, soft_wrap=True, markup=False)
            break
        console.print(f"video: {path}", highlight=False, soft_wrap=True)
    return results


def _task(cfg: DictConfig, actor: LoadedActor) -> Task:
    """The task asked for, else the one the policy was trained on."""
    if cfg.get("task"):
        return make_task(cfg.task.name, **cfg.task.get("kwargs", {}))
    if not isinstance(actor.task, dict) or not isinstance(actor.task.get("name"), str):
        raise FlowleapError(
            "this policy was trained without a task: add task=NAME (`flowleap list what=tasks`)"
        )
    kwargs = actor.task.get("kwargs")
    return make_task(actor.task["name"], **(kwargs if isinstance(kwargs, dict) else {}))


def _default_out(actor: LoadedActor, task: Task) -> Path:
    """`eval/<task>_nfe<N>.json` in the run directory (or the exported folder)."""
    checkpoints = actor.path.parent
    root = checkpoints.parent if checkpoints.name == "checkpoints" else actor.path
    return root / "eval" / f"{task.name.replace('/', '-')}_nfe{actor.nfe}.json"


if __name__ == "__main__":
    import sys

    from flowleap.scripts.cli.main import run_verb

    sys.exit(run_verb("eval", sys.argv[1:]))
