"""How often do the tests of `flowleap compare` err, and do its intervals hold what they promise? By simulation.

`flowleap compare calibrate=true`. The sequential tests are looked at after every episode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flowleap.envs.comparison import compare_scores
from flowleap.envs.power import LARGEST_UNPAIRED, paired_power, unpaired_power
from flowleap.envs.sequential import PRIOR, Alternative, beta_binomial, score_evidence
from flowleap.envs.statistics import bootstrap_mean, newcombe, tango, wilson
from flowleap.policy.core.errors import require_int
from flowleap.scripts.common import say

LOOKS = 500  # episodes of a sequential comparison, each of them a look
SCORE_LOOKS = 300
PRIORS = (PRIOR, (1.0, 1.0), (2.0, 2.0))
ALTERNATIVES: tuple[Alternative, ...] = ("greater", "two-sided")
_CHUNK = 500  # simulations at a time
_DRAWS = 1000  # of a bootstrap that is simulated

Row = dict[str, Any]


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Simulate everything, print the worst of each kind; return the rows."""
    n, alpha = require_int("simulations", cfg.simulations, 100, 1_000_000), cfg.alpha
    rng = np.random.default_rng(0)
    results: dict[str, Any] = {
        "looks": LOOKS,
        "score_looks": SCORE_LOOKS,
        "prior": list(PRIOR),
        "false_alarms": false_alarms(rng, n, alpha),
        "false_alarms_scores": false_alarms_scores(rng, n, alpha),
        "decisions": decisions(rng, n, alpha),
        "decisions_scores": decisions_scores(rng, n, alpha),
        "type_one": type_one(alpha),
        "coverage": [*coverage_rates(rng, n), *coverage_bootstrap(rng, max(20, n // 20))],
    }
    for name in ("false_alarms", "false_alarms_scores", "type_one"):
        worst = max(results[name], key=lambda row: float(row["rate"]))
        say(f"{name}: at most {worst['rate']:.4f} ({_words(worst)})")
    for row in (*results["decisions"], *results["decisions_scores"]):
        if row.get("prior", results["prior"]) == results["prior"]:
            say(f"decided after {row['mean']:.1f} episodes, {100 * row['decided']:.1f} % ({_words(row)})")
    for name in dict.fromkeys(row["interval"] for row in results["coverage"]):
        own = [row for row in results["coverage"] if row["interval"] == name]
        low, high = (f(own, key=lambda row: float(row["coverage"])) for f in (min, max))
        say(
            f"coverage of {name}: {low['coverage']:.3f} ({_words(low)}) to {high['coverage']:.3f} ({_words(high)})"
        )
    return results


def _words(row: Row) -> str:
    skipped = ("rate", "mean", "median", "decided", "coverage", "interval", "prior")
    return ", ".join(f"{k} {v}" for k, v in row.items() if k not in skipped)


def pairs(
    rng: np.random.Generator, p: float, q: float, correlation: float, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Successes bool of two policies with rates p and q, correlated on each seed."""
    both = p * q + correlation * float(np.sqrt(p * (1 - p) * q * (1 - q)))
    assert max(0.0, p + q - 1) - 1e-12 <= both <= min(p, q) + 1e-12
    first = rng.random(shape) < p
    second = rng.random(shape) < np.where(
        first, both / p if p else 0.0, (q - both) / (1 - p) if p < 1 else 0.0
    )
    return first, second


def _counts(
    rng: np.random.Generator, p: float, q: float, correlation: float, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs won and lost so far, int [n, LOOKS]."""
    first, second = pairs(rng, p, q, correlation, (n, LOOKS))
    return np.cumsum(first & ~second, axis=1), np.cumsum(second & ~first, axis=1)


def _tables(prior: tuple[float, float]) -> dict[Alternative, np.ndarray]:
    """Log E [wins, losses] for all counts of LOOKS episodes."""
    won, lost = np.mgrid[: LOOKS + 1, : LOOKS + 1]
    forward = beta_binomial(won, lost, prior)
    return {"greater": forward, "two-sided": np.logaddexp(forward, forward.T) - np.log(2)}


def false_alarms(rng: np.random.Generator, n: int, alpha: float) -> list[Row]:
    """How often the test of successes stops, at any of LOOKS looks, where the first is no better."""
    tables, rows = _tables(PRIOR), []
    cases = [(p, p, c) for p, c in product((0.05, 0.3, 0.5, 0.7, 0.85, 0.95), (0.0, 0.5, 0.9))]
    for p, q, correlation in [*cases, (1.0, 1.0, 0.0), (0.65, 0.7, 0.0)]:
        won, lost = _counts(rng, p, q, correlation, n)
        for alternative in ALTERNATIVES if p == q else ALTERNATIVES[:1]:
            stopped = tables[alternative][won, lost].max(axis=1) >= -np.log(alpha)
            row = {"first": p, "second": q, "correlation": correlation, "alternative": alternative}
            rows.append({**row, "rate": float(stopped.mean())})
    return rows


def decisions(rng: np.random.Generator, n: int, alpha: float) -> list[Row]:
    """Episodes until the test of successes stops, LOOKS where it does not."""
    rows = []
    tables = {prior: _tables(prior) for prior in PRIORS}
    cases = [(0.85, 0.7, c) for c in (0.0, 0.3, 0.5)] + [(0.9, 0.6, 0.0), (0.8, 0.7, 0.0), (0.55, 0.4, 0.0)]
    for p, q, correlation in cases:
        won, lost = _counts(rng, p, q, correlation, n)
        for prior, alternative in product(PRIORS, ALTERNATIVES):
            row = {"first": p, "second": q, "correlation": correlation, "alternative": alternative}
            rows.append({**row, "prior": list(prior), **_stops(tables[prior][alternative][won, lost], alpha)})
    return rows


def _stops(log_evidence: np.ndarray, alpha: float) -> Row:
    """Mean and median of the episodes until a stop, and the share of [n, T] comparisons that stop."""
    reached = log_evidence >= -np.log(alpha)
    decided = reached.any(axis=1)
    times = np.where(decided, reached.argmax(axis=1) + 1, log_evidence.shape[1])
    return {
        "mean": float(times.mean()),
        "median": float(np.median(times)),
        "decided": float(decided.mean()),
    }


Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def _pusht_like(share: float) -> Draw:
    """Most episodes reach the full score, the others anything."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return np.where(rng.random(shape) < share, 1.0, rng.beta(2, 2, shape))

    return draw


EQUAL: dict[str, tuple[Draw, Draw]] = {
    "uniform": (lambda rng, s: rng.random(s), lambda rng, s: rng.random(s)),
    "0 or 1": (lambda rng, s: rng.random(s) < 0.8, lambda rng, s: rng.random(s) < 0.8),
    "near 0 and 1 against .5": (lambda rng, s: rng.beta(0.1, 0.1, s), lambda rng, s: np.full(s, 0.5)),
    "rarely 1 against .05": (lambda rng, s: rng.random(s) < 0.05, lambda rng, s: np.full(s, 0.05)),
    "rarely 0 against .95": (lambda rng, s: rng.random(s) < 0.95, lambda rng, s: np.full(s, 0.95)),
    "always the same": (lambda rng, s: np.full(s, 0.7), lambda rng, s: np.full(s, 0.7)),
    "most 1, others beta": (_pusht_like(0.8), _pusht_like(0.8)),
}
BETTER: dict[str, tuple[Draw, Draw]] = {
    "most 1, others beta, .85 and .70": (_pusht_like(0.85), _pusht_like(0.7)),
    "beta(8, 2) and beta(7, 3)": (lambda rng, s: rng.beta(8, 2, s), lambda rng, s: rng.beta(7, 3, s)),
    "0 or 1, .85 and .70": (lambda rng, s: rng.random(s) < 0.85, lambda rng, s: rng.random(s) < 0.7),
}


def _score_paths(
    rng: np.random.Generator, draws: tuple[Draw, Draw], n: int
) -> Iterator[dict[Alternative, np.ndarray]]:
    """Log E [chunk, SCORE_LOOKS] of the test of scores, chunk by chunk."""
    for start in range(0, n, _CHUNK):
        shape = (min(_CHUNK, n - start), SCORE_LOOKS)
        first, second = (np.asarray(draw(rng, shape), np.float64) for draw in draws)
        forward = score_evidence(first, second, (0, 1))
        backward = score_evidence(second, first, (0, 1))
        yield {"greater": forward, "two-sided": np.logaddexp(forward, backward) - np.log(2)}


def false_alarms_scores(rng: np.random.Generator, n: int, alpha: float) -> list[Row]:
    """How often the test of scores stops, at any of SCORE_LOOKS looks, where both have the same mean."""
    rows = []
    for name, draws in EQUAL.items():
        stops: dict[str, int] = dict.fromkeys(ALTERNATIVES, 0)
        for paths in _score_paths(rng, draws, n):
            for alternative, path in paths.items():
                stops[alternative] += int((path.max(axis=1) >= -np.log(alpha)).sum())
        rows += [{"scores": name, "alternative": a, "rate": count / n} for a, count in stops.items()]
    return rows


def decisions_scores(rng: np.random.Generator, n: int, alpha: float) -> list[Row]:
    """Episodes until the test of scores stops, SCORE_LOOKS where it does not."""
    rows = []
    for name, draws in BETTER.items():
        chunks = list(_score_paths(rng, draws, min(n, 4 * _CHUNK)))
        for alternative in ALTERNATIVES:
            path = np.concatenate([chunk[alternative] for chunk in chunks])
            rows.append({"scores": name, "alternative": alternative, **_stops(path, alpha)})
    return rows


def type_one(alpha: float) -> list[Row]:
    """The probability that tests at a fixed number of episodes reject where the rates are equal; exact."""
    rows = []
    rates = (0.05, 0.3, 0.5, 0.7, 0.9)
    for n, p, correlation in product((10, 50, 200), rates, (0.0, 0.5)):
        row = {"test": "exact McNemar", "episodes": n, "success": p, "correlation": correlation}
        rows.append({**row, "rate": paired_power(n, p, p, correlation, alpha)})
    for (n, m), p in product(((10, 10), (50, 50), (20, 100), (200, 200)), rates):
        assert max(n, m) <= LARGEST_UNPAIRED
        row = {"test": "Boschloo", "episodes": f"{n} and {m}", "success": p}
        rows.append({**row, "rate": unpaired_power(n, m, p, p, alpha)})
    return rows


def coverage_rates(rng: np.random.Generator, n: int) -> list[Row]:
    """How often the intervals of rates and of their differences hold the truth."""
    rows = []
    for episodes, p in product((20, 50, 200), (0.05, 0.5, 0.7, 0.95)):
        bounds = np.array([wilson(k, episodes) for k in range(episodes + 1)])
        found = bounds[rng.binomial(episodes, p, n)]
        row: Row = {"interval": "Wilson", "episodes": episodes, "success": p}
        rows.append({**row, "coverage": _covered(found, p)})
    for episodes, (p, q) in product((20, 50, 200), ((0.7, 0.7), (0.85, 0.7), (0.95, 0.9))):
        seen = np.stack([rng.binomial(episodes, p, n), rng.binomial(episodes, q, n)], axis=1)
        found = _of_each(_newcombe(episodes), seen)
        row = {"interval": "Newcombe", "episodes": episodes, "first": p, "second": q}
        rows.append({**row, "coverage": _covered(found, p - q)})
        for correlation in (0.0, 0.5):
            first, second = pairs(rng, p, q, correlation, (n, episodes))
            seen = np.stack([(first & ~second).sum(1), (second & ~first).sum(1)], axis=1)
            found = _of_each(partial(tango, episodes), seen)
            row = {"interval": "Tango", "episodes": episodes, "first": p, "second": q}
            rows.append({**row, "correlation": correlation, "coverage": _covered(found, p - q)})
    return rows


def coverage_bootstrap(rng: np.random.Generator, n: int) -> list[Row]:
    """The same of the bootstraps: of a mean, of a paired difference, and over training runs."""
    rows = []
    draw = _pusht_like(0.7)
    truth = 0.7 + 0.3 * 0.5
    for episodes in (20, 50, 100):
        means = [bootstrap_mean(draw(rng, (1, episodes))[0], draws=_DRAWS) for _ in range(n)]
        row: Row = {"interval": "bootstrap of a mean", "episodes": episodes}
        rows.append({**row, "coverage": _covered(np.array(means), truth)})
        found = []
        for _ in range(n):
            hard = rng.random((1, episodes)) < 0.2  # for both
            first, second = (np.where(hard, 0.3, draw(rng, (1, episodes))) for _ in range(2))
            found.append(compare_scores(first, second, True, draws=_DRAWS)["interval"])
        row = {"interval": "bootstrap of a paired difference", "episodes": episodes}
        rows.append({**row, "coverage": _covered(np.array(found), 0.0)})
    for (runs, spread), crossed in product(product((2, 3, 5, 10), (0.0, 0.05, 0.15)), (True, False)):
        intervals = []
        for _ in range(n):
            sides = [
                rng.random((runs, 50)) < np.clip(rng.normal(0.75, spread, (runs, 1)), 0, 1) for _ in "ab"
            ]
            a, b = (side * 1.0 if crossed else list(side * 1.0) for side in sides)
            intervals.append(compare_scores(a, b, crossed, draws=_DRAWS)["interval"])
        seeds = "shared" if crossed else "own"
        row = {"interval": "two-level bootstrap", "training_runs": runs, "sd_of_runs": spread, "seeds": seeds}
        rows.append({**row, "episodes": 50, "coverage": _covered(intervals, 0.0)})
    return rows


def _newcombe(episodes: int) -> Callable[[int, int], tuple[float, float]]:
    return lambda a, b: newcombe(a, episodes, b, episodes)


def _of_each(interval: Callable[[int, int], tuple[float, float]], seen: np.ndarray) -> np.ndarray:
    """Intervals [n, 2] of counts [n, 2], each kind of which is computed once."""
    kinds, which = np.unique(seen, axis=0, return_inverse=True)
    return np.array([interval(int(a), int(b)) for a, b in kinds])[which.ravel()]


def _covered(bounds: np.ndarray | Sequence[Sequence[float]], truth: float) -> float:
    low, high = np.asarray(bounds).T
    return float(((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean())
