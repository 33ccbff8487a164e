"""Is one policy better than another? Exact tests of success, bootstraps of scores.

Paired tests are for policies that were evaluated on the same seeds. Episodes of one training run are no independent
evidence about the method that trained it: where a policy stands for several runs, those are resampled as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flowleap.envs.statistics import binomial, newcombe, tango
from flowleap.policy.core.errors import optional_import

DRAWS = 10_000

Runs = np.ndarray | Sequence[np.ndarray]
"""Values per episode of each training run of a policy: [J, N] where the runs were evaluated on the same seeds, in the
same order, else J arrays."""


def mcnemar(b: int, c: int) -> float:
    """Two-sided p-value of the exact McNemar test: are `b` and `c` the two sides of a fair coin?

    `b` and `c` count the seeds on which only the first, and only the second policy succeeded (McNemar 1947).
    """
    return min(1.0, 2 * float(binomial(b + c, 0.5)[: min(b, c) + 1].sum()))


def boschloo(a: int, n: int, b: int, m: int) -> float:
    """Two-sided p-value of Boschloo's exact unconditional test of two independent rates, a of n and b of m.

    Uniformly more powerful than Fisher's exact test (Boschloo 1970).

    Raises:
        FlowleapError: scipy is not installed.
    """
    if (a, b) in ((0, 0), (n, m)):  # scipy has no p-value for a column of zeros
        return 1.0
    table = [[a, b], [n - a, m - b]]
    return float(optional_import("scipy.stats", "compare").boschloo_exact(table).pvalue)


def compare_success(a: Runs, b: Runs, paired: bool) -> dict[str, Any]:
    """Test the difference of two success rates: values 0 or 1.

    Returns:
        `test`, `p_value`, `difference`, its 95 % `interval` and the `interval_method`; where paired, `discordant`
        [b, c]; with several training runs on a side what `compare_scores` returns.
    """
    if len(a) > 1 or len(b) > 1:
        return compare_scores(a, b, paired)
    (first,), (second,) = a, b
    if paired:
        only_first, only_second = int((first > second).sum()), int((first < second).sum())
        return {
            "test": "exact McNemar",
            "p_value": mcnemar(only_first, only_second),
            "difference": (only_first - only_second) / len(first),
            "interval": list(tango(len(first), only_first, only_second)),
            "interval_method": "Tango score",
            "discordant": [only_first, only_second],
        }
    counts = (int(first.sum()), len(first), int(second.sum()), len(second))
    return {
        "test": "Boschloo",
        "p_value": boschloo(*counts),
        "difference": float(first.mean() - second.mean()),
        "interval": list(newcombe(*counts)),
        "interval_method": "Newcombe",
    }


def compare_scores(a: Runs, b: Runs, paired: bool, seed: int = 0, draws: int = DRAWS) -> dict[str, Any]:
    """Bootstrap the difference of two mean scores, over episodes and, where there are several, over training runs.

    `paired`: all runs of both policies were evaluated on the same seeds, in the same order; each draw takes the same
    seeds for all of them. Otherwise each policy, or each run where its runs had seeds of their own, draws by itself.

    The percentile interval and the p-value that belongs to it (Efron and Tibshirani 1993, chapters 13 and 15), from
    `draws` resamples. Training runs are drawn one fewer at a time than there are, which makes the variance of their
    mean right (Rao and Wu 1988): J out of J would give (J - 1) / J of it.

    Returns:
        `test`, `p_value`, `difference`, its 95 % `interval`, `interval_method`.
    """
    rng = np.random.default_rng(seed)
    shared = _weights(rng, draws, len(a[0]), len(a[0])) if paired else None
    differences = _means(a, rng, draws, shared) - _means(b, rng, draws, shared)
    low, high = np.quantile(differences, [0.025, 0.975])
    side = min((differences <= 0).sum(), (differences >= 0).sum())
    kind = "two-level bootstrap" if len(a) > 1 or len(b) > 1 else "bootstrap"
    return {
        "test": f"{'paired ' if paired else ''}{kind}",
        "p_value": min(1.0, 2 * (float(side) + 1) / (draws + 1)),
        "difference": float(np.mean([x.mean() for x in a]) - np.mean([x.mean() for x in b])),
        "interval": [float(low), float(high)],
        "interval_method": "percentile",
    }


def paired_difference(a: ArrayLike, b: ArrayLike) -> dict[str, Any]:
    """`n`, `mean` and 95 % bootstrap `interval` of the difference of values [J, N], a less b, on the same N seeds."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    result = compare_scores(first, second, paired=True)
    return {"n": first.shape[1], "mean": result["difference"], "interval": result["interval"]}


def interval_of_mean(runs: Runs, seed: int = 0) -> list[float]:
    """95 % bootstrap interval of a policy's mean over its training runs and their episodes."""
    means = _means(runs, np.random.default_rng(seed), DRAWS)
    return [float(x) for x in np.quantile(means, [0.025, 0.975])]


def _weights(rng: np.random.Generator, draws: int, n: int, size: int) -> np.ndarray:
    """Shares [draws, n] of `n` things in `size` of them drawn with replacement."""
    chosen = rng.integers(n, size=(draws, size)) + n * np.arange(draws)[:, None]
    return np.bincount(chosen.ravel(), minlength=draws * n).reshape(draws, n) / size


def _means(
    runs: Runs, rng: np.random.Generator, draws: int, episodes: np.ndarray | None = None
) -> np.ndarray:
    """Means [draws] of resampled training runs over resampled episodes, whose shares [draws, N] may be given."""
    chosen = _weights(rng, draws, len(runs), max(1, len(runs) - 1))
    if isinstance(runs, np.ndarray):
        n = runs.shape[1]
        shares = _weights(rng, draws, n, n) if episodes is None else episodes
        return np.asarray(((shares @ runs.T) * chosen).sum(axis=1))
    means = [_weights(rng, draws, len(own), len(own)) @ own for own in runs]
    return np.asarray((np.stack(means, axis=1) * chosen).sum(axis=1))
