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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flowleap.envs.actors import LoadedActor, load_actor
from flowleap.envs.conventions import in_actions_of
from flowleap.envs.power import format_power
from flowleap.envs.rendering import save_video
from flowleap.envs.report import episode_rows, format_line, format_modes, summary
from flowleap.envs.rollout import record_episode, rollout
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results
from flowleap.policy.core.registry import check_options, parameters_of
from flowleap.policy.core.spec import Spec
from flowleap.policy.deploy.plan import Continuity
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
    continuity, spec, act = _late(cfg, actor)
    seeds = range(cfg.seed, cfg.seed + cfg.episodes)
    n_envs = cfg.n_envs or os.cpu_count() or 1
    say(format_power(len(seeds)))
    with progress_bar(0, len(seeds), f"eval {task.name}", enabled=True) as advance:
        done: list[bool] = []

        def on_progress(episode: Any) -> None:
            done.append(episode.success)
            advance(len(done), f"success {sum(done)}/{len(done)}")

        result = rollout(task, act, spec, seeds, n_envs, cfg.batched, on_progress, continuity)
    report = summary(result, task)
    late = f"_{continuity.continuity}_delay{continuity.delay}" if continuity else ""
    default = f"eval/{re.sub('[/:]', '-', task.name)}_nfe{actor.nfe}{late}.json"
    out = Path(cfg.out) if cfg.out else run_dir_of(actor.path) / default
    say(f"NFE {actor.nfe} | {format_line(report)}")
    if "modes" in report:
        say(format_modes(report["modes"]))
    say(f"seeds {seeds.start}..{seeds.stop - 1}: {task.seed_note}")
    results = {
        "nfe": actor.nfe,
        "summary": report,
        "seeds": {"first": seeds.start, "count": len(seeds)},
        "spec": spec.to_dict(),
        "continuity": asdict(continuity) if continuity else None,
        "actor": {"path": str(cfg.checkpoint), **actor.describe},
        "config": plain(cfg),
        "rows": episode_rows(result),
    }
    say(f"results: {write_results(out, results)}")
    for seed in seeds[: cfg.videos]:
        path = out.with_name(f"{out.stem}_seed{seed}.mp4")
        try:
            frames, _ = record_episode(task, act, spec, seed, continuity)
            save_video(path, frames, fps=task.spec.control_hz or 10)
        except FlowleapError as error:  # no GL backend, no imageio: the scores stand, the pictures do not
            say(f"no video: {error}")
            break
        say(f"video: {path}")
    return results


def _late(cfg: DictConfig, actor: LoadedActor) -> tuple[Continuity | None, Spec, Any]:
    """How chunks arrive and go on, with the Spec and the callable that this needs; None where they arrive at once."""
    given = {name: cfg[name] for name in parameters_of(Continuity)}
    continuity = Continuity(**check_options("eval", parameters_of(Continuity), given, "eval"))
    if continuity == Continuity():
        return None, actor.spec, actor.act
    window = actor.spec.n_action_steps
    execute = continuity.execute or max(continuity.delay, min(window, actor.actions - continuity.delay))
    continuity.check(actor.actions, execute, actor.prefix)
    return (
        continuity,
        actor.spec.with_window(actor.spec.n_obs_steps, actor.spec.horizon, execute),
        actor.chunk,
    )


if __name__ == "__main__":
    sys.exit(run_verb("eval"))
