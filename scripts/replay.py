"""Execute recorded actions in the simulator, from the recorded initial states: do dataset and task agree?

    flowleap replay task=pusht/keypoints dataset=pusht_cchi_v7_replay.zarr
    flowleap replay task=metaworld/door-open-v3 dataset=data/metaworld/door-open-v3.zarr

Open loop, so it needs no policy: the check to make before training. An episode reaches what was recorded if its
score (of the task) is the recorded one or better, less `tolerance`; a recorded success must succeed. Datasets without
recorded outcomes are judged by success. Initial states come from the seeds that `flowleap collect` stored for this very
task, else from the columns that it can be reset to (and, for robosuite, robomimic's `model_file` of each episode).
Package versions that differ from the recorded ones are named.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from flowleap.datasets.columns import ACTION
from flowleap.datasets.dataset import Dataset, open_dataset
from flowleap.envs.registry import make_task
from flowleap.envs.replay import (
    Replayed,
    differences,
    initial_state_columns,
    reaches,
    recorded_outcome,
    replay,
    replay_summary,
    version_differences,
)
from flowleap.envs.report import format_rate
from flowleap.envs.task import SCENE, Task
from flowleap.envs.task_data import task_columns, with_recorded_env
from flowleap.envs.workers import env_errors
from flowleap.policy.core.errors import FlowleapError, UsageError
from flowleap.policy.core.files import write_results
from flowleap.policy.training.metrics import progress_bar
from flowleap.scripts.cli.compose import given_overrides
from flowleap.scripts.cli.main import run_verb


def main(cfg: DictConfig) -> dict[str, Any]:
    """Replay `cfg.episodes` episodes of `cfg.dataset`, print what came of it, write the results JSON and return it."""
    if not cfg.get("task"):
        raise UsageError("'task' is required: add task=NAME (`flowleap list what=tasks` shows them)")
    if cfg.episodes is not None and (not isinstance(cfg.episodes, int) or cfg.episodes < 1):
        raise UsageError(f"episodes={cfg.episodes} must be a whole number >= 1, or null for all")
    name, plain = cfg.task.name, OmegaConf.to_container(cfg.task, resolve=True)
    assert isinstance(plain, dict)
    with open_dataset(cfg.dataset) as source:
        task = make_task(name, **with_recorded_env(name, plain.get("kwargs") or {}, source))
        rows = _replay_all(task, source, cfg)
        versions = [source.spec.source.get("versions"), source.attrs.get("versions")]
    changed = version_differences(*versions)
    results = {
        "command": f"flowleap replay {shlex.join(given_overrides())}",
        "config": OmegaConf.to_container(cfg, resolve=True),
        "summary": replay_summary(task, rows),
        "recorded_versions": next((part for part in versions if part), None),
        "version_differences": changed,
        "rows": [asdict(row) for row in rows],
    }
    console = Console(soft_wrap=True, highlight=False)
    for line in describe(results):
        console.print(line, markup=False)
    out = cfg.out or f"runs/replay/{task.name.replace('/', '_')}.json"
    console.print(f"results: {write_results(Path(out), results)}", markup=False)
    return results


def _replay_all(task: Task, source: Dataset, cfg: DictConfig) -> list[Replayed]:
    """Replay episode by episode; only one is in memory."""
    keys, translate = task_columns(task, source, list(source.fields), match=False)
    states = None if _has_seeds(task, source) else initial_state_columns(task, list(source.fields))
    if states is None:
        _require_seeds(task, source)
    rewards = [key for key in source.extra if key in ("reward", "rewards")]
    wanted = list(dict.fromkeys([*keys, *(states or ()), *rewards]))
    noise = 0.0 if states else float(source.attrs.get("action_noise", 0.0))
    succeeded = source.attrs.get("successes") == source.n_episodes
    count = min(cfg.episodes or source.n_episodes, source.n_episodes)
    rows: list[Replayed] = []
    with env_errors(task.name):
        env = task.make_env()
    try:
        with progress_bar(0, count, f"replay {task.name}", enabled=True) as advance:
            for index in range(count):
                columns = source.episode(index, wanted)
                own = translate({key: columns[key] for key in keys})
                seed = source.seed(index)
                if states is None and seed is None:
                    raise FlowleapError(f"'{source.path}', {source.label(index)}: no seed was recorded")
                start: Mapping[str, Any] | int = seed or 0
                if states is not None:
                    scene = source.scene(index)
                    start = {key: columns[key][0] for key in states} | ({SCENE: scene} if scene else {})
                outcome, seen = replay(task, env, own[ACTION], start, noise)
                known = recorded_outcome(task, columns, succeeded)
                off = differences(seen, own)
                reached = reaches(task, outcome, known, cfg.tolerance)
                rows.append(
                    Replayed(index, len(off), outcome, known, reached, float(off[0]), float(off.mean()))
                )
                advance(len(rows), f"reached {sum(row.reached for row in rows)}/{len(rows)}")
    finally:
        env.close()
    return rows


def _has_seeds(task: Task, source: Dataset) -> bool:
    """Whether the dataset stores the seeds of episodes of this very task."""
    origin = source.spec.source
    return source.seed(0) is not None and task.name in (origin.get("task"), f"gym/{origin.get('env')}")


def _require_seeds(task: Task, source: Dataset) -> None:
    """Raise unless the dataset stores the seeds of episodes of this very task."""
    if _has_seeds(task, source):
        return
    states = " or ".join(" + ".join(keys) for keys in task.state_keys)
    cannot = (
        f"needs the column(s) {states}" if states else "cannot be reset to a recorded state, only to a seed"
    )
    if source.seed(0) is None:
        raise FlowleapError(
            f"task {task.name} {cannot}, and '{source.path}' has no seeds (`flowleap collect` stores them): "
            "this dataset cannot be replayed there"
        )
    origin = source.spec.source
    raise FlowleapError(
        f"task {task.name} {cannot}, and the seeds in '{source.path}' are of "
        f"{origin.get('task') or origin.get('env') or 'an unknown task'}"
    )


def describe(results: Mapping[str, Any]) -> list[str]:
    """Say in lines for people what came of it."""
    report = results["summary"]
    lines = [f"{report['task']}: {format_rate(report['reached'])} of the episodes reach what was recorded"]
    for name, part in report.items():
        if not isinstance(part, dict) or "replayed" not in part:
            continue
        texts = [
            f"{part[kind]['count']}/{part[kind]['n']}"
            if "count" in part[kind]
            else f"mean {part[kind]['mean']:.4g}, min {part[kind]['min']:.4g}"
            for kind in ("replayed", "recorded")
            if kind in part
        ]
        lines.append(f"  {name}: {texts[0]}" + (f" (recorded: {texts[1]})" if texts[1:] else ""))
    lines.append(
        f"  observations differ from the recorded ones by at most {report['start_difference']['max']:.3g} "
        f"at the start, by {report['mean_difference']['mean']:.3g} on average over the frames"
    )
    if results["recorded_versions"] is None:
        lines.append("  the dataset does not say which versions recorded it")
    else:
        lines.append(f"  versions: {'; '.join(results['version_differences']) or 'those of the recording'}")
    return lines


if __name__ == "__main__":
    sys.exit(run_verb("replay", sys.argv[1:]))
