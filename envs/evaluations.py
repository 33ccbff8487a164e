"""Results files of `flowleap eval`, read to be compared: the same task and protocol, seeds that occur once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from flowleap.envs.comparison import Runs
from flowleap.envs.protocols import protocol_name
from flowleap.envs.rollout import Episode
from flowleap.policy.core.errors import FlowleapError, suggest

SCORES = ("max_reward", "sum_reward")


@dataclass(frozen=True)
class Evaluation:
    """One results file.

    Attributes:
        path: the file.
        policy: where the policy lay that was evaluated.
        task, protocol: what it was evaluated on, and how.
        conditions: what else a score depends on: NFE, delay, executed actions, weights, options of the task.
        headline: the task's own metric.
        seeds: int [N], ascending, each once.
        values: metric -> float64 [N]; success and outcomes are 0 or 1.
        rates: the metrics that are 0 or 1.
    """

    path: Path
    policy: str
    task: str
    protocol: str
    conditions: Mapping[str, Any]
    headline: str
    seeds: np.ndarray
    values: Mapping[str, np.ndarray]
    rates: frozenset[str]


@dataclass(frozen=True)
class Policy:
    """What is compared: one training run, or several of one method, under a label."""

    label: str
    evaluations: Sequence[Evaluation]

    @property
    def crossed(self) -> bool:
        """Whether all runs were evaluated on the same seeds."""
        return all(np.array_equal(e.seeds, self.evaluations[0].seeds) for e in self.evaluations)

    def is_rate(self, metric: str) -> bool:
        """Whether the metric is a success or another outcome."""
        return metric in self.evaluations[0].rates

    def runs(self, metric: str) -> Runs:
        """The values of `metric`: [J, N] where the runs share their seeds, else J arrays.

        Raises:
            FlowleapError: a file does not hold it.
        """
        for e in self.evaluations:
            if metric not in e.values:
                raise FlowleapError(
                    f"{e.path} has no metric '{metric}'{suggest(metric, e.values)} ({', '.join(e.values)})"
                )
        values = [e.values[metric] for e in self.evaluations]
        return np.stack(values) if self.crossed else values


def aligned(a: Policy, b: Policy, metric: str) -> tuple[Runs, Runs, bool]:
    """The values of two policies, and whether they are paired: where they share seeds, on those.

    Raises:
        FlowleapError: they share some seeds, but less than half of the fewer ones.
    """
    first, second = a.runs(metric), b.runs(metric)
    own, others = a.evaluations[0].seeds, b.evaluations[0].seeds
    if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
        return first, second, False
    _, left, right = np.intersect1d(own, others, assume_unique=True, return_indices=True)
    if not len(left):
        return first, second, False
    if 2 * len(left) < min(len(own), len(others)):
        raise FlowleapError(
            f"{a.label} and {b.label} share {len(left)} seeds of {len(own)} and {len(others)}, so they are neither "
            "paired nor independent: evaluate both with the same seed= and episodes="
        )
    return first[:, left], second[:, right], True


def read_policy(label: str, words: Sequence[str]) -> Policy:
    """Read the files of one policy: see `find_files`.

    Raises:
        FlowleapError: no file, a file that is none of `flowleap eval`, the same policy twice, or runs under different
            conditions.
    """
    evaluations = [read_evaluation(file) for word in words for file in find_files(word)]
    for a, b in combinations(evaluations, 2):
        if a.policy == b.policy:
            raise FlowleapError(
                f"{label}: {a.path} and {b.path} are evaluations of one policy, {a.policy}; give one of them "
                "(the runs of a label are trainings with different seeds)"
            )
        require_comparable([Policy(str(a.path), [a]), Policy(str(b.path), [b])])
        if a.conditions != b.conditions:
            name = next(k for k in a.conditions if a.conditions[k] != b.conditions[k])
            raise FlowleapError(
                f"{label}: its runs differ in {name}: {a.conditions[name]} in {a.path}, {b.conditions[name]} in "
                f"{b.path}; give them labels of their own"
            )
    return Policy(label, evaluations)


def require_comparable(policies: Sequence[Policy]) -> None:
    """Raise `FlowleapError` unless all policies were evaluated on one task, by one protocol."""
    first, *others = (policy.evaluations[0] for policy in policies)
    for other in others:
        for name in ("task", "protocol"):
            if getattr(first, name) != getattr(other, name):
                raise FlowleapError(
                    f"not comparable: the {name} of {first.path} is {getattr(first, name)}, "
                    f"that of {other.path} is {getattr(other, name)}"
                )


def differing(policies: Sequence[Policy]) -> dict[str, list[Any]]:
    """The conditions in which policies differ: name -> the value of each policy."""
    own = [policy.evaluations[0].conditions for policy in policies]
    return {name: [c[name] for c in own] for name in own[0] if any(c[name] != own[0][name] for c in own)}


def value(episode: Episode, metric: str) -> float:
    """The value of a metric in an episode: success, a reward, or one of its further outcomes."""
    if metric == "success" or metric in SCORES:
        return float(getattr(episode, metric))
    return float((episode.outcomes or {})[metric])


def find_files(word: str) -> list[Path]:
    """Results files by a path: a file, a run or export folder (the newest of its eval/*.json), or a glob of those.

    Raises:
        FlowleapError: there are none.
    """
    found = [Path(word)] if Path(word).exists() else sorted(map(Path, glob(word)))
    if not found:
        raise FlowleapError(f"no results at '{word}': give a file of `flowleap eval`, a run folder or a glob")
    files = []
    for path in found:
        if path.is_dir():
            results = sorted(path.glob("eval/*.json"), key=lambda file: file.stat().st_mtime)
            if not results:
                raise FlowleapError(f"{path} holds no eval/*.json: flowleap eval checkpoint={path}")
            path = results[-1]
        files.append(path)
    return files


def read_evaluation(path: Path) -> Evaluation:
    """Read a results file of `flowleap eval`.

    Raises:
        FlowleapError: it is none, is cut short, lacks something, or holds a seed twice or a number that is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        summary, rows = data["summary"], data["rows"]
        task, headline = str(summary["task"]), str(summary["headline"]["metric"])
        success = ["success"] if summary.get("reports_success", True) else []
        rates = {name: np.array([bool(row[name]) for row in rows], np.float64) for name in success}
        for name in summary.get("outcomes", {}):
            rates[name] = np.array([bool(row["outcomes"][name]) for row in rows], np.float64)
        scores = {name: np.array([row[name] for row in rows], np.float64) for name in SCORES}
        seeds = np.array([row["seed"] for row in rows], np.int64)
        protocol, conditions = protocol_name(data), _conditions(data)
        policy = str(data["actor"]["path"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FlowleapError(f"{path} cannot be read ({error}): run `flowleap eval` again") from error
    except KeyError as error:
        raise FlowleapError(f"{path} is no results file of `flowleap eval`: it has no {error}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FlowleapError(f"{path} is no results file of `flowleap eval`: {error}") from error
    order = np.argsort(seeds, kind="stable")
    values = {name: own[order] for name, own in {**rates, **scores}.items()}
    seeds = seeds[order]
    if not len(seeds):
        raise FlowleapError(f"{path} holds no episode")
    if (twice := seeds[1:][seeds[1:] == seeds[:-1]]).size:
        raise FlowleapError(f"{path} holds the episode of seed {twice[0]} twice")
    for name, own in values.items():
        if not np.isfinite(own).all():
            raise FlowleapError(f"{path}: {name} of seed {seeds[~np.isfinite(own)][0]} is no finite number")
    return Evaluation(path, policy, task, protocol, conditions, headline, seeds, values, frozenset(rates))


def _conditions(data: Mapping[str, Any]) -> dict[str, Any]:
    late, config = data.get("continuity"), data.get("config") or {}
    return {
        "NFE": data["nfe"],
        "delay": f"{late['delay']} steps, {late['continuity']}" if late else "none",
        "warm start": (late or {}).get("warm_start") or 0,
        "executed actions": (data.get("spec") or {}).get("n_action_steps"),
        "weights": config.get("weights", "ema"),
        "noise seed": data.get("noise_seed") or 0,
        "perturbation": data.get("perturbation") or "none",
        "task options": (config.get("task") or {}).get("kwargs") or {},
    }
