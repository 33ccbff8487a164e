"""A suite of tasks: each is collected, trained on and evaluated by itself; one table by group, beside published rows.

    flowleap benchmark suite=metaworld50
    flowleap benchmark suite=metaworld50 only=[metaworld/push-v3] results=runs/look

Beside each stands the success of the expert whose demonstrations these were, on the same seeds: where it fails, nothing
is demonstrated either.

Every finished task is written into the results at once. Given again, the command goes on: tasks that the results hold
under the same conditions are not repeated, whether their runs are still there or not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from flowleap.datasets.dataset import open_dataset
from flowleap.envs.demonstrate import demonstrations
from flowleap.envs.protocols import FLOWLEAP
from flowleap.envs.registry import make_task
from flowleap.envs.statistics import rate
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.files import write_results
from flowleap.scripts.common import command, plain, say, show_table
from flowleap.scripts.studies.benchmark_tables import aggregate

Records = list[dict[str, Any]]
# What a task's entry in the results depends on.
CONDITIONS = [
    "demonstrations",
    "collect",
    "train",
    "objectives",
    "nfe",
    "own",
    "seeds",
    "episodes",
    "eval_seed",
    "n_action_steps",
    "protocol",
]
UNUSUAL = ["acting", "teachers", "time_share", "schedule"]  # the same, where there is something


class Suite:
    """The tasks of a suite and what is known of them.

    Args:
        cfg: of `flowleap benchmark`.
        path: the results file.

    Raises:
        FlowleapError: `only` names none of the tasks, or the results were made under other conditions.
    """

    def __init__(self, cfg: DictConfig, path: Path) -> None:
        self.cfg, self.path = cfg, path
        self.group_of = {task: group for group, tasks in plain(cfg.tasks).items() for task in tasks}
        self.tasks = plain(cfg.only) or list(self.group_of)
        for task in self.tasks:
            if task not in self.group_of:
                known = list(self.group_of)
                raise FlowleapError(f"only: the suite has no task {task!r}{suggest(task, known)}")
        self.conditions = {name: plain(cfg[name]) for name in CONDITIONS}
        self.conditions |= {name: plain(cfg[name]) for name in UNUSUAL if cfg[name]}
        self.found: dict[str, Any] = {}
        self._lock = Lock()
        if path.exists():
            before = _read(path)
            if before.get("conditions") != self.conditions:
                raise FlowleapError(
                    f"{path} holds other results ({_changed(before.get('conditions'), self.conditions)}); "
                    "choose another name=... or move it away"
                )
            self.found = before["tasks"]

    @property
    def left(self) -> list[str]:
        """The tasks without a result."""
        return [task for task in self.tasks if task not in self.found]

    def add(self, task: str, records: Records) -> None:
        """Keep what was found of a task: its table, and each episode's outcome."""
        metric = records[0]["summary"]["headline"]["metric"]
        entry = {
            "group": self.group_of[task],
            "table": [
                row | _mean_of_best(records, row)
                for row in aggregate(records, len(records[0]["rows"]), metric)
            ],
            "outcomes": [
                {
                    **{key: record[key] for key in ("objective", "nfe", "seed", "schedule") if key in record},
                    metric: [float(row[metric]) for row in record["rows"]],
                }
                for record in records
            ],
        }
        with self._lock:
            self.found[task] = entry
            self.write()
        for row in entry["table"]:
            success = row["success"]
            say(f"{task}: {row['objective']}, NFE {row['nfe']}: {success['count']}/{success['n']}")

    def add_experts(self) -> None:
        """Find out, where nobody has, how often the expert of a finished task succeeds on its evaluation seeds."""
        if self.cfg.protocol != FLOWLEAP.name:
            return  # others count success in ways of their own
        for name, entry in self.found.items():
            task = make_task(name)
            if "expert" not in entry and task.expert is not None:
                seeds = FLOWLEAP.seeds(self.cfg.eval_seed, entry["table"][0]["episodes_per_seed"])
                attempts = demonstrations(task, seeds.start)
                succeeded = [next(attempts).success for _ in seeds]
                attempts.close()
                entry["expert"] = {**rate(succeeded), "outcomes": succeeded}
                say(f"{name}: its expert on the same seeds: {sum(succeeded)}/{len(seeds)}")
                self.write()

    def write(self) -> dict[str, Any]:
        """Write the results, and return them."""
        tasks = {task: self.found[task] for task in self.group_of if task in self.found}
        results = {
            "command": command("benchmark"),
            "conditions": self.conditions,
            "groups": groups(tasks),
            "published": plain(self.cfg.published),
            "tasks": tasks,
        }
        write_results(self.path, results)
        return results

    def task_config(self, task: str) -> DictConfig:
        """The configuration of a task by itself."""
        given = {
            "task": {"name": task},
            "dataset": self.cfg.dataset.replace("{task}", task),
            "out": f"{self.cfg.out}/{task}",
        }
        merged = OmegaConf.merge(self.cfg, given)
        assert isinstance(merged, DictConfig)
        return merged


def collected(cfg: DictConfig, run: Callable[..., float]) -> None:
    """Collect the demonstrations of a task unless they are there.

    Raises:
        FlowleapError: there are others, such as those of a collection that was broken off.
    """
    if Path(cfg.dataset).exists():
        with open_dataset(cfg.dataset) as source:
            count = source.n_episodes
        if count != cfg.demonstrations:
            raise FlowleapError(
                f"{cfg.dataset} holds {count} episodes, but demonstrations={cfg.demonstrations}: move it away, and "
                "the suite collects anew"
            )
    else:
        words = [f"task={cfg.task.name}", f"out={cfg.dataset}", f"episodes={cfg.demonstrations}", "n_envs=1"]
        run("collect", *words, *shlex.split(cfg.collect))


def groups(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean success over the tasks of each group and over all, by objective and NFE."""
    rows = []
    for name in (*dict.fromkeys(entry["group"] for entry in found.values()), "all"):
        own = [entry for entry in found.values() if name in ("all", entry["group"])]
        cells: dict[tuple[str, int], list[Any]] = {}
        for entry in own:
            for row in entry["table"]:
                cells.setdefault((row["objective"], row["nfe"]), []).append(row)
        for (objective, nfe), part in cells.items():
            pooled = [row["success"] for row in part]
            count, n = (sum(success[key] for success in pooled) for key in ("count", "n"))
            seeds = np.array([row["per_seed"] for row in part]).mean(0)
            rows.append(
                {
                    "group": name,
                    "objective": objective,
                    "nfe": nfe,
                    "tasks": len(part),
                    "mean": float(np.mean([row["score"] for row in part])),
                    "per_seed": seeds.tolist(),
                    "success": rate([True] * count + [False] * (n - count)),
                }
            )
    return rows


def _mean_of_best(records: Records, row: Mapping[str, Any]) -> dict[str, float]:
    """Of a row of the table, with `schedule`: what published scores are, averaged over training seeds."""
    own = [r["schedule"] for r in records if "schedule" in r and (r["objective"], r["nfe"]) == _cell(row)]
    return {"mean_of_best": float(np.mean([each["mean_of_best"] for each in own]))} if own else {}


def _cell(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["objective"], row["nfe"]


def show(results: Mapping[str, Any]) -> None:
    """Print the tasks beside the published rows, then the groups beside published means."""
    published = results["published"]
    every = [row for entry in results["tasks"].values() for row in entry["table"]]
    best = ["mean of best"] if any("mean_of_best" in row for row in every) else []
    rows = []
    for task, entry in results["tasks"].items():
        for row in entry["table"]:
            success = row["success"]
            others = [_shown(each.get("scores", {}).get(task)) for each in published]
            others = [_shown(row.get("mean_of_best")) for _ in best] + others
            scores = " ".join(f"{score:.2f}" for score in row["per_seed"])
            cell = f"{success['count']}/{success['n']}"
            expert = "{count}/{n}".format(**entry["expert"]) if "expert" in entry else ""
            rows.append((entry["group"], task, row["objective"], row["nfe"], cell, scores, expert, *others))
    head = ("", "task", "objective", "NFE", "success", "each training seed", "its expert", *best)
    show_table((*head, *(each["name"] for each in published)), rows)
    for each in published:
        say(f"{each['name']} differs: {each['differs']}")
    grouped = [each for each in published if "groups" in each]
    rows = [
        (
            *(row["group"], row["objective"], row["nfe"], row["tasks"], f"{row['mean']:.3f}"),
            *(_shown(each["groups"].get(row["group"])) for each in grouped),
        )
        for row in results["groups"]
    ]
    show_table(("", "objective", "NFE", "tasks", "mean", *(each["name"] for each in grouped)), rows)


def _shown(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def _read(path: Path) -> dict[str, Any]:
    try:
        before = json.loads(path.read_text())
        if isinstance(before["tasks"], dict):
            return dict(before)
    except (ValueError, KeyError, TypeError):
        pass
    raise FlowleapError(
        f"{path} holds no results of a suite, or is cut short: move it away, or choose name=..."
    )


def _changed(before: Any, now: Mapping[str, Any]) -> str:
    known = before if isinstance(before, dict) else {}
    return ", ".join(f"{key}={known.get(key)}" for key, value in now.items() if known.get(key) != value)
