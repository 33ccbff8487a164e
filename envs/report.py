"""From outcomes to statements: intervals, paired differences, a results file, one line for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from flowleap.envs.motion import Motion
from flowleap.envs.rollout import Rollout
from flowleap.envs.statistics import histogram, mean, mode_coverage, rate
from flowleap.envs.task import Task


def summary(rollout: Rollout, task: Task) -> dict[str, Any]:
    """Describe a rollout in JSON-ready numbers.

    Returns:
        `task`, `seed_note`, `episodes`; `success` {count, n, rate, interval}; `max_reward` and `sum_reward`
        {mean, interval}; `reports_success`; `outcomes` {name: {count, n, rate, interval}} where the task has some;
        `motion`, see `motion_summary`;
        `headline` {metric, value, interval}; `mean_length`; `latency_ms` {p50, p95, mean, histogram} per actor call;
        `seconds` {policy, env, wall}; `n_envs`, `batched`; for a task with modes, `modes`: `mode_coverage`.
    """
    episodes = rollout.episodes
    success = rate([e.success for e in episodes])
    rewards = {name: mean([getattr(e, name) for e in episodes]) for name in ("max_reward", "sum_reward")}
    metric = task.scoring.metric
    headline = {"success": success, **rewards}[metric]
    value = headline.get("rate", headline.get("mean"))
    latency, policy = np.asarray(rollout.latencies) * 1e3, float(np.sum(rollout.latencies))
    p50, p95 = np.quantile(latency, [0.5, 0.95])
    report = {
        "task": task.name,
        "seed_note": task.seed_note,
        "episodes": len(episodes),
        "success": success,
        **rewards,
        "reports_success": task.scoring.reports_success,
        "headline": {"metric": metric, "value": value, "interval": headline["interval"]},
        "mean_length": float(np.mean([e.length for e in episodes])),
        "latency_ms": {
            "p50": float(p50),
            "p95": float(p95),
            "mean": float(latency.mean()),
            "histogram": histogram(latency),
        },
        "seconds": {"policy": policy, "env": rollout.env_seconds, "wall": rollout.wall_seconds},
        "n_envs": rollout.n_envs,
        "batched": rollout.batched,
    }
    if moved := [e.motion for e in episodes if e.motion]:
        report["motion"] = motion_summary(moved)
    if task.scoring.outcomes:
        flags = {
            name: [bool(e.outcomes and e.outcomes[name]) for e in episodes] for name in task.scoring.outcomes
        }
        report["outcomes"] = {name: rate(values) for name, values in flags.items()}
    if task.scoring.modes:
        report["modes"] = mode_coverage(episodes, task.scoring.modes)
    return report


def motion_summary(moved: Sequence[Motion]) -> dict[str, Any]:
    """Each figure as {mean, interval} over n >= 1 episodes; `ratio`: mean jump over mean interior, None if it is 0."""
    report: dict[str, Any] = {name: mean([getattr(each, name) for each in moved]) for name in Motion._fields}
    interior = report["interior"]["mean"]
    return report | {"ratio": report["jump"]["mean"] / interior if interior else None}


def episode_rows(rollout: Rollout) -> list[dict[str, Any]]:
    """Per-episode outcomes as JSON-ready rows, in the order of the seeds."""
    optional = ("outcomes", "motion")
    rows = [asdict(e) | {"motion": e.motion and e.motion._asdict()} for e in rollout.episodes]
    return [{k: v for k, v in row.items() if k not in optional or v is not None} for row in rows]


def format_line(report: Mapping[str, Any]) -> str:
    """One line for people out of `summary`'s numbers."""
    reward = report["max_reward"]
    parts = {
        "success": f"success {format_rate(report['success'])}",
        "max_reward": f"mean max reward {_with_interval(reward['mean'], reward)}",
    }
    headline = report["headline"]["metric"]
    if headline == "sum_reward":
        returns = report["sum_reward"]
        low, high = returns["interval"]
        parts["sum_reward"] = f"mean return {returns['mean']:.1f} [{low:.1f}, {high:.1f}]"
        del parts["max_reward"]
    if not report.get("reports_success", True):
        del parts["success"]
    first = [parts.pop(headline), *parts.values()]
    first += [f"{name} {format_rate(part)}" for name, part in report.get("outcomes", {}).items()]
    latency, seconds = report["latency_ms"], report["seconds"]
    return (
        f"{report['task']}: {' | '.join(first)} | "
        f"latency p50 {latency['p50']:.2f} ms, p95 {latency['p95']:.2f} ms | "
        f"{seconds['wall']:.1f} s (policy {seconds['policy']:.1f}, env {seconds['env']:.1f})"
    )


def format_modes(modes: Mapping[str, Any]) -> str:
    """One line for people out of `mode_coverage`'s numbers."""
    counts = " ".join(f"{name} {count}" for name, count in modes["successes"].items())
    bits = f"entropy {modes['entropy_bits']:.2f} of {modes['max_bits']:.2f} bits"
    share = "too few successes for a share of the expert's"
    if modes["entropy_share"] is not None:
        share = f"{_with_interval(modes['entropy_share'], modes)} of the expert's"
    return f"modes of the successes: {counts} | {bits}, {share} | {modes['open']} episodes completed no mode"


def format_motion(report: Mapping[str, Any]) -> str:
    """One line for people out of `motion_summary`'s numbers."""
    ratio = report["ratio"]
    times = "" if ratio is None else f" ({ratio:.2g} times as much)"
    value = {name: report[name]["mean"] for name in Motion._fields}
    return (
        f"motion: {value['jump']:.3g} where chunks meet, {value['interior']:.3g} within{times} | RMS acceleration "
        f"{value['acceleration']:.3g} per step², jerk {value['jerk']:.3g} per step³ | "
        f"{100 * value['clipped']:.1f} % of the actions clipped"
    )


def format_rate(part: Mapping[str, Any]) -> str:
    """`3/5 = 0.600 [0.231, 0.882]` out of `rate`'s numbers."""
    return f"{part['count']}/{part['n']} = {_with_interval(part['rate'], part)}"


def format_replay(report: Mapping[str, Any]) -> list[str]:
    """Lines for people out of `replay_summary`'s numbers."""
    lines = [f"{report['task']}: {format_rate(report['reached'])} of the episodes reach what was recorded"]
    for name, part in report.items():
        if isinstance(part, dict) and "replayed" in part:
            recorded = f" (recorded: {_figures(part['recorded'])})" if "recorded" in part else ""
            lines.append(f"  {name}: {_figures(part['replayed'])}{recorded}")
    lines.append(
        f"  observations differ from the recorded ones by at most {report['start_difference']['max']:.3g} "
        f"at the start, by {report['mean_difference']['mean']:.3g} on average over the frames"
    )
    return lines


def _figures(part: Mapping[str, Any]) -> str:
    if "count" in part:
        return f"{part['count']}/{part['n']}"
    return f"mean {part['mean']:.4g}, min {part['min']:.4g}"


def _with_interval(value: float, part: Mapping[str, Any]) -> str:
    low, high = part["interval"]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
