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

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flowleap.datasets.dataset import open_dataset
from flowleap.envs.conventions import in_actions_of
from flowleap.envs.registry import make_task
from flowleap.envs.replay import replay_dataset, replay_summary, version_differences
from flowleap.envs.report import format_replay
from flowleap.envs.task_data import with_recorded_env
from flowleap.policy.core.errors import UsageError
from flowleap.policy.core.files import write_results
from flowleap.policy.training.metrics import progress_bar
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import command, plain, say, selected


def main(cfg: DictConfig) -> dict[str, Any]:
    """Replay episodes of `cfg.dataset`, print what came of it, write the results JSON and return it."""
    if not cfg.get("task"):
        raise UsageError("'task' is required: add task=NAME (`flowleap list what=tasks` shows them)")
    name, kwargs = cfg.task.name, plain(cfg.task).get("kwargs") or {}
    with open_dataset(cfg.dataset, **selected(cfg)) as source:
        task = in_actions_of(make_task(name, **with_recorded_env(name, kwargs, source)), source.spec)
        count = source.n_episodes
        with progress_bar(0, count, f"replay {task.name}", enabled=True) as advance:
            rows = replay_dataset(task, source, count, cfg.tolerance, advance)
        versions = [source.spec.source.get("versions"), source.attrs.get("versions")]
    changed = version_differences(*versions)
    report = replay_summary(task, rows)
    results = {
        "command": command("replay"),
        "config": plain(cfg),
        "summary": report,
        "recorded_versions": next((part for part in versions if part), None),
        "version_differences": changed,
        "rows": [asdict(row) for row in rows],
    }
    for line in format_replay(report):
        say(line)
    known = f"versions: {'; '.join(changed) or 'those of the recording'}"
    say(f"  {known if any(versions) else 'the dataset does not say which versions recorded it'}")
    out = cfg.out or f"runs/replay/{task.name.replace('/', '_')}.json"
    say(f"results: {write_results(Path(out), results)}")
    return results


if __name__ == "__main__":
    sys.exit(run_verb("replay"))
