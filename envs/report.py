"""From outcomes to statements: intervals, paired differences, a results file, one line for people."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from flowleap.envs.registry import Task, package_versions
from flowleap.envs.rollout import Episode, Rollout
from flowleap.policy.spec import FlowleapError

_BOOTSTRAP_DRAWS = 10_000
_PACKAGES = (
    "flowleap",
    "numpy",
    "gymnasium",
    "gym-pusht",
    "pymunk",
    "metaworld",
    "gymnasium-robotics",
    "robosuite",
    "mujoco",
    "torch",
    "onnxruntime",
)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a success rate; `z = 1.96` gives 95 %.

    Raises:
        FlowleapError: unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise FlowleapError(f"no interval for {successes} successes in {n} episodes")
    rate = successes / n
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n successes one bound is 0 or 1 exactly; rounding must not push it past.
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean of `values` (10,000 draws, seeded)."""
    data = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), size=(_BOOTSTRAP_DRAWS, len(data)))
    low, high = np.quantile(data[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def entropy(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Plug-in entropy, bits, of `counts` [..., K] over their last axis: 0 where it sums to 0."""
    data = np.asarray(counts, np.float64)
    share = data / np.maximum(data.sum(axis=-1, keepdims=True), 1.0)
    log_share = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return 0.0 - (share * log_share).sum(axis=-1)  # never -0.0


def expected_uniform_entropy(k: int, n: int) -> float:
    """Expected plug-in entropy, bits, of `n` >= 1 uniform draws from `k` >= 2 values; exact."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    m = np.arange(1, n + 1)  # how often one value is drawn: Binomial(n, 1/k), alike for all k of them
    log_p = log_factorial[n] - log_factorial[m] - log_factorial[n - m] - m * math.log(k)
    p = np.exp(log_p + (n - m) * math.log1p(-1 / k))
    return math.log2(n) - k / n * float(np.sum(p * m * np.log2(m)))


def mode_coverage(episodes: Sequence[Episode], modes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """How evenly the successful episodes spread over a task's modes, against an expert that draws uniformly.

    The plug-in entropy of n episodes is biased downwards, the expert's as well: `entropy_share` divides by
    the expectation of the expert's own in as many episodes, so that a policy as diverse as the expert scores
    1 on average, and single results may exceed it. Its 95 % bootstrap interval (multinomial, 10,000 draws,
    seeded) is centred on the estimate, because resampling adds the same bias once more.

    Returns:
        `episodes` and `successes` {mode: count}; `open`: episodes that completed no mode; `entropy_bits` of
        the successes, as counted; `max_bits` = log2(K); `expert_bits`, the expectation above; `entropy_share`
        and its `interval`. The last three are None below 2 successes.
    """
    taken = [e.mode for e in episodes if e.mode is not None]
    successes = [e.mode for e in episodes if e.mode is not None and e.success]
    every, counts = (np.bincount(np.array(m, int), minlength=len(modes)) for m in (taken, successes))
    n, bits, expert, share, interval = len(successes), float(entropy(counts)), None, None, None
    if n >= 2:
        expert = expected_uniform_entropy(len(modes), n)
        share = bits / expert
        resampled = np.random.default_rng(seed).multinomial(n, counts / n, size=_BOOTSTRAP_DRAWS)
        draws = entropy(resampled) / expert
        low, high = np.quantile(draws - draws.mean(), [0.025, 0.975])
        interval = [max(0.0, share + float(low)), share + float(high)]
    return {
        "episodes": dict(zip(modes, every.tolist(), strict=True)),
        "successes": dict(zip(modes, counts.tolist(), strict=True)),
        "open": len(episodes) - len(taken),
        "entropy_bits": bits,
        "max_bits": math.log2(len(modes)),
        "expert_bits": expert,
        "entropy_share": share,
        "interval": interval,
    }


def summary(rollout: Rollout, task: Task) -> dict[str, Any]:
    """Describe a rollout in JSON-ready numbers.

    Returns:
        `task`, `seed_note`, `episodes`; `success` {count, n, rate, interval}; `max_reward` and `sum_reward`
        {mean, interval}; `reports_success`; `outcomes` {name: {count, n, rate, interval}} where the task has some;
        `headline` {metric, value, interval}; `mean_length`; `latency_ms` {p50, p95, mean} per actor call;
        `seconds` {policy, env, wall}; `n_envs`, `batched`; for a task with modes, `modes`: `mode_coverage`.
    """
    episodes = rollout.episodes
    success = rate([e.success for e in episodes])
    rewards = {name: _mean([getattr(e, name) for e in episodes]) for name in ("max_reward", "sum_reward")}
    headline = success if task.metric == "success" else rewards[task.metric]
    latency = np.asarray(rollout.latencies) * 1e3
    report = {
        "task": task.name,
        "seed_note": task.seed_note,
        "episodes": len(episodes),
        "success": success,
        **rewards,
        "reports_success": task.reports_success,
        "headline": {
            "metric": task.metric,
            "value": headline.get("rate", headline.get("mean")),
            "interval": headline["interval"],
        },
        "mean_length": float(np.mean([e.length for e in episodes])),
        "latency_ms": {
            "p50": float(np.quantile(latency, 0.5)),
            "p95": float(np.quantile(latency, 0.95)),
            "mean": float(latency.mean()),
        },
        "seconds": {
            "policy": float(np.sum(rollout.latencies)),
            "env": rollout.env_seconds,
            "wall": rollout.wall_seconds,
        },
        "n_envs": rollout.n_envs,
        "batched": rollout.batched,
    }
    if task.outcomes:
        report["outcomes"] = {
            name: rate([bool(e.outcomes and e.outcomes[name]) for e in episodes]) for name in task.outcomes
        }
    if task.modes:
        report["modes"] = mode_coverage(episodes, task.modes)
    return report


def episode_rows(rollout: Rollout) -> list[dict[str, Any]]:
    """Per-episode outcomes as JSON-ready rows, in the order of the seeds."""
    rows = [asdict(episode) for episode in rollout.episodes]
    return [{k: v for k, v in row.items() if k != "outcomes" or v is not None} for row in rows]


def paired_difference(
    a: Sequence[Episode], b: Sequence[Episode], metric: str = "max_reward", seed: int = 0
) -> dict[str, Any]:
    """Mean per-seed difference `a - b` of an `Episode` field, with its 95 % bootstrap interval.

    Raises:
        FlowleapError: the two were not evaluated on the same seeds.
    """
    if [e.seed for e in a] != [e.seed for e in b]:
        raise FlowleapError("paired_difference: the two results were evaluated on different seeds")
    difference = np.array(
        [float(getattr(x, metric)) - float(getattr(y, metric)) for x, y in zip(a, b, strict=True)]
    )
    return {
        "metric": metric,
        "n": len(difference),
        "mean": float(difference.mean()),
        "interval": list(bootstrap_mean(difference, seed)),
    }


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


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> Path:
    """Write `results` as JSON, atomically, beside package versions, platform and date; return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {
        "versions": {name: version for name, version in package_versions(*_PACKAGES).items() if version},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps({**results, "origin": origin}, indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)
    return path


def rate(values: Sequence[bool]) -> dict[str, Any]:
    """Describe n >= 1 bools: `count`, `n`, `rate` and its 95 % Wilson `interval`."""
    count, n = sum(map(bool, values)), len(values)
    return {"count": count, "n": n, "rate": count / n, "interval": list(wilson(count, n))}


def format_rate(part: Mapping[str, Any]) -> str:
    """`3/5 = 0.600 [0.231, 0.882]` out of `rate`'s numbers."""
    return f"{part['count']}/{part['n']} = {_with_interval(part['rate'], part)}"


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "interval": list(bootstrap_mean(values))}


def _with_interval(value: float, part: Mapping[str, Any]) -> str:
    low, high = part["interval"]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
