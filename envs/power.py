"""What a number of episodes can tell: exact power of the tests in `comparison`, the smallest difference they detect.

All by enumeration of what may happen, with numpy alone, so that `flowleap eval` can say it before a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from flowleap.envs.statistics import binomial, log_factorials

LARGEST_UNPAIRED = 300
"""Episodes a side up to which Boschloo's test of all tables takes no noticeable time."""


def mcnemar_power(n: int, only_first: float, only_second: float, alpha: float = 0.05) -> float:
    """Probability that the exact McNemar test rejects on n seeds, two-sided.

    `only_first` and `only_second`: probability that a seed is won by the first, or the second policy alone.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 0.0
    power = 0.0
    for d, chance in enumerate(binomial(n, min(1.0, discordant))):
        if chance < 1e-12:
            continue
        tail = np.cumsum(binomial(d, 0.5))
        reject = int(np.searchsorted(2 * tail, alpha * (1 + 1e-9), "right"))  # so many at either end
        if reject:
            wins = binomial(d, only_first / discordant)
            power += chance * float(wins[:reject].sum() + wins[len(wins) - reject :].sum())
    return power


def paired_power(n: int, p: float, q: float, correlation: float = 0.0, alpha: float = 0.05) -> float:
    """Power of the exact McNemar test for success rates p and q on the same n seeds.

    `correlation` of the two outcomes of a seed; cut to what the rates allow. Zero is the cautious guess: seeds that are
    hard for both make pairs alike, and the test more powerful.
    """
    both = p * q + correlation * math.sqrt(p * (1 - p) * q * (1 - q))
    both = min(max(both, p + q - 1, 0.0), p, q)
    return mcnemar_power(n, p - both, q - both, alpha)


def unpaired_power(n: int, m: int, p: float, q: float, alpha: float = 0.05) -> float:
    """Power of Boschloo's test, two-sided, for success rates p in n episodes and q in m others."""
    return float(binomial(n, p) @ (boschloo_table(n, m) <= alpha) @ binomial(m, q))


@lru_cache(maxsize=4)
def boschloo_table(n: int, m: int, grid: int = 100) -> np.ndarray:
    """Two-sided p-values [n + 1, m + 1] of Boschloo's test, for every outcome at once.

    scipy has it for one outcome at a time. The supremum over the common rate is taken over `grid` of its values.
    """
    less, greater = _one_sided(n, m, grid), _one_sided(m, n, grid).T
    return np.minimum(1.0, 2 * np.minimum(less, greater))


def _one_sided(n: int, m: int, grid: int) -> np.ndarray:
    """P-values of "the first rate is not smaller": how likely a Fisher p-value as small as a table's is, at worst."""
    fisher = _fisher(n, m).ravel()
    order = np.argsort(fisher, kind="stable")
    ranked = fisher[order]
    last = np.searchsorted(ranked, ranked * (1 + 1e-9), "right") - 1  # tables that tie go together
    worst = np.zeros(len(order))
    for rate in (np.arange(grid) + 0.5) / grid:
        chance = np.outer(binomial(n, rate), binomial(m, rate)).ravel()[order]
        np.maximum(worst, np.cumsum(chance)[last], out=worst)
    p_values = np.empty(len(order))
    p_values[order] = worst
    return p_values.reshape(n + 1, m + 1)


def _fisher(n: int, m: int) -> np.ndarray:
    """P(X <= x) of the hypergeometric X, given x + y successes: Fisher's one-sided p-values [n + 1, m + 1]."""
    f = log_factorials(n + m)
    x, y = np.ogrid[: n + 1, : m + 1]
    chance = np.exp(
        f[n] - f[x] - f[n - x] + f[m] - f[y] - f[m - y] - (f[n + m] - f[x + y] - f[n + m - x - y])
    )
    p_values = np.zeros((n + 1, m + 1))
    for i in range(n + 1):  # x - 1 and y + 1 is the next smaller x with as many successes
        p_values[i] = chance[i]
        if i:
            p_values[i, :-1] += p_values[i - 1, 1:]
    return np.minimum(1.0, p_values)


def detectable(
    power: Callable[[float, float], float], rate: float, target: float = 0.8, step: float = 0.005
) -> float | None:
    """The success rate next above `rate` that `power(higher, rate)` tells from it with probability `target`.

    To `step`; None if not even 1 is told.
    """
    low, high = 0, max(0, math.floor((1 - rate) / step + 1e-9))
    if power(min(1.0, rate + high * step), rate) < target:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(rate + middle * step, rate) >= target else (middle, high)
    return min(1.0, rate + high * step)


def format_power(n: int, rate: float = 0.7, higher: float = 0.8) -> str:
    """One line before a run of `n` episodes: which rate is told from `rate`, and how often `higher` would be.

    Against as many episodes of another policy, on the same seeds with outcomes that are independent, or on other seeds.
    """
    kinds = {"the same seeds": _paired(n)}
    if n <= LARGEST_UNPAIRED:
        kinds["other seeds"] = _unpaired(n, n)
    parts = [
        f"on {name} {_told(detectable(power, rate))}, from {higher:.2f} in {100 * power(higher, rate):.0f} % of cases"
        for name, power in kinds.items()
    ]
    return f"{n} episodes tell a success rate of {rate:.2f} (power 80 %, alpha 0.05): {'; '.join(parts)}"


def power_of_pair(first: np.ndarray, second: np.ndarray, paired: bool) -> tuple[dict[str, Any], str]:
    """What comparisons of as many episodes as these two can tell from the lower of their rates; a line about it.

    `first` and `second` are 0 or 1. Where they are paired, the correlation of their outcomes is taken as observed.
    """
    n, m, rate = len(first), len(second), float(min(first.mean(), second.mean()))
    found: dict[str, Any] = {"episodes": [n, m], "rate": rate, "correlation": None}
    if paired:
        spread = first.std() * second.std()
        found["correlation"] = rho = float(np.cov(first, second, bias=True)[0, 1] / spread) if spread else 0.0
        power, what = _paired(n, rho), f"{n} pairs with outcomes correlated as these ({rho:+.2f})"
    elif max(n, m) <= LARGEST_UNPAIRED:
        power, what = _unpaired(n, m), f"{n} and {m} unpaired episodes"
    else:
        return found, f"{n} and {m} unpaired episodes: too many to enumerate what they can tell"
    found["detectable"] = detectable(power, rate)
    return (
        found,
        f"{what} tell a success rate of {rate:.2f} {_told(found['detectable'])} (power 80 %, alpha 0.05)",
    )


def _paired(n: int, correlation: float = 0.0) -> Callable[[float, float], float]:
    return lambda p, q: paired_power(n, p, q, correlation)


def _unpaired(n: int, m: int) -> Callable[[float, float], float]:
    return lambda p, q: unpaired_power(n, m, p, q)


def _told(rate: float | None) -> str:
    return "from no higher one" if rate is None else f"from {rate:.2f} and higher"
