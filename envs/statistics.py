"""Intervals of rates, of means and of their differences, and entropies: what a score may claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowleap.envs.rollout import Episode
from flowleap.policy.core.errors import FlowleapError

_BOOTSTRAP_DRAWS = 10_000
_BINS = 24
_NARROW = 1.01  # ratio of the ends of a histogram, at least
_SMALLEST = 1e-6  # that a logarithmic axis shows


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


def newcombe(a: int, n: int, b: int, m: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of the difference of two independent rates, a of n less b of m.

    Newcombe, Statistics in Medicine 17, 873 (1998), method 10: the Wilson intervals of both, squared and added.
    """
    (low_a, high_a), (low_b, high_b) = wilson(a, n, z), wilson(b, m, z)
    p, q = a / n, b / m
    return p - q - math.hypot(p - low_a, high_b - q), p - q + math.hypot(high_a - p, q - low_b)


def tango(n: int, b: int, c: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of the difference of two rates on the same n >= 1 seeds, (b - c) / n.

    Only the first policy succeeded on `b` seeds, only the second on `c`. Tango, Statistics in Medicine 17, 891
    (1998): all differences that a score test does not reject, which nuisance parameters at their constrained maximum
    of likelihood make good also where few pairs are discordant.
    """

    def score(d: float) -> float:
        slope, constant = (2 * n - b + c) * d - b - c, -c * d * (1 - d)
        only_second = (math.sqrt(max(0.0, slope**2 - 8 * n * constant)) - slope) / (4 * n)
        variance = n * (2 * only_second + d * (1 - d))
        return (
            (b - c - n * d) / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, b - c - n * d)
        )

    def bound(low: float, high: float, level: float) -> float:
        for _ in range(50):  # the score falls with d
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > level else (low, middle)
        return (low + high) / 2

    estimate = (b - c) / n
    low = -1.0 if c == n else bound(-1.0, estimate, z)
    high = 1.0 if b == n else bound(estimate, 1.0, -z)
    return low, high


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, seed: int = 0, draws: int = _BOOTSTRAP_DRAWS
) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean of `values` (seeded)."""
    data = np.asarray(values, np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(data), size=(draws, len(data)))
    low, high = np.quantile(data[chosen].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def mean(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Describe n >= 1 numbers: their `mean` and its 95 % bootstrap `interval`."""
    return {"mean": float(np.mean(values)), "interval": list(bootstrap_mean(values))}


def histogram(values: Sequence[float] | np.ndarray) -> dict[str, list[Any]]:
    """Counts of n >= 1 numbers >= 0 in bins of equal ratio, and the `edges` of these, one more; none is left out."""
    data = np.maximum(np.asarray(values, np.float64), _SMALLEST)
    low, high = float(data.min()), float(data.max())
    edges = np.geomspace(low, max(high, low * _NARROW), _BINS + 1)
    edges[[0, -1]] = low, max(high, low * _NARROW)  # rounding must not push the extremes out
    return {"edges": edges.tolist(), "counts": np.histogram(data, edges)[0].tolist()}


def entropy(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Plug-in entropy, bits, of `counts` [..., K] over their last axis: 0 where it sums to 0."""
    data = np.asarray(counts, np.float64)
    share = data / np.maximum(data.sum(axis=-1, keepdims=True), 1.0)
    log_share = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return 0.0 - (share * log_share).sum(axis=-1)  # never -0.0


def expected_uniform_entropy(k: int, n: int) -> float:
    """Expected plug-in entropy, bits, of `n` >= 1 uniform draws from `k` >= 2 values; exact."""
    m = np.arange(1, n + 1)  # how often one value is drawn, alike for all k of them
    return math.log2(n) - k / n * float(np.sum(binomial(n, 1 / k)[1:] * m * np.log2(m)))


def binomial(n: int, p: float) -> np.ndarray:
    """Probabilities [n + 1] of 0 to n successes in n trials."""
    if p in (0.0, 1.0):
        return np.eye(n + 1)[round(n * p)]
    m, log_factorial = np.arange(n + 1), log_factorials(n)
    ways = log_factorial[n] - log_factorial[m] - log_factorial[n - m]
    return np.exp(ways + m * math.log(p) + (n - m) * math.log1p(-p))


def log_factorials(n: int) -> np.ndarray:
    """Log k! for k = 0 to n."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


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


def rate(values: Sequence[bool]) -> dict[str, Any]:
    """Describe n >= 1 bools: `count`, `n`, `rate` and its 95 % Wilson `interval`."""
    count, n = sum(map(bool, values)), len(values)
    return {"count": count, "n": n, "rate": count / n, "interval": list(wilson(count, n))}
