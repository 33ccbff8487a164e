"""Roll a policy out in simulation: seeded episodes, intervals, a results JSON, videos.

flowleap eval checkpoint=RUN_DIR
flowleap eval checkpoint=RUN_DIR episodes=100 steps=1 videos=2
flowleap eval checkpoint=EXPORTED_DIR              the exported policy, without torch
flowleap eval checkpoint=hf://OWNER/NAME           a policy of the Hugging Face Hub; @REVISION pins it
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flowleap.envs.actors import load_actor
from flowleap.envs.conventions import in_actions_of
from flowleap.envs.rendering import save_video
from flowleap.envs.report import episode_rows, format_line, format_modes, summary
from flowleap.envs.rollout import record_episode, rollout
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results
from flowleap.policy.training.metrics import progress_bar
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import plain, recorded_task, run_dir_of, say, task_of


def main(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate `cfg.checkpoint`; print one line, write the results JSON, and return its content."""
    actor = load_actor(cfg.checkpoint, cfg.steps, cfg.weights, cfg.device, cfg.threads, cfg.n_action_steps)
    task = task_of(cfg.get("task")) or recorded_task(actor.task)
    if task is None:
        raise FlowleapError(
            "this policy was trained without a task: add task=NAME (`flowleap list what=tasks`)"
        )
    task = in_actions_of(task, actor.spec)
    actor.spec.require_match(task.spec, f"checkpoint {cfg.checkpoint}", f"task {task.name}")
    seeds = range(cfg.seed, cfg.seed + cfg.episodes)
    n_envs = cfg.n_envs or os.cpu_count() or 1
    with progress_bar(0, len(seeds), f"eval {task.name}", enabled=True) as advance:
        done: list[bool] = []

        def on_progress(episode: Any) -> None:
            done.append(episode.success)
            advance(len(done), f"success {sum(done)}/{len(done)}")

        result = rollout(task, actor.act, actor.spec, seeds, n_envs, cfg.batched, on_progress)
    report = summary(result, task)
    default = f"eval/{re.sub('[/:]', '-', task.name)}_nfe{actor.nfe}.json"
    out = Path(cfg.out) if cfg.out else run_dir_of(actor.path) / default
    say(f"NFE {actor.nfe} | {format_line(report)}")
    if "modes" in report:
        say(format_modes(report["modes"]))
    say(f"seeds {seeds.start}..{seeds.stop - 1}: {task.seed_note}")
    results = {
        "nfe": actor.nfe,
        "summary": report,
        "seeds": {"first": seeds.start, "count": len(seeds)},
        "spec": actor.spec.to_dict(),
        "actor": {"path": str(cfg.checkpoint), **actor.describe},
        "config": plain(cfg),
        "rows": episode_rows(result),
    }
    say(f"results: {write_results(out, results)}")
    for seed in seeds[: cfg.videos]:
        path = out.with_name(f"{out.stem}_seed{seed}.mp4")
        try:
            frames, _ = record_episode(task, actor.act, actor.spec, seed)
            save_video(path, frames, fps=task.spec.control_hz or 10)
        except FlowleapError as error:  # no GL backend, no imageio: the scores stand, the pictures do not
            say(f"no video: {error}")
            break
        say(f"video: {path}")
    return results


if __name__ == "__main__":
    sys.exit(run_verb("eval"))
