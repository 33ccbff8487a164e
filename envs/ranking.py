"""Several policies at once: all pairs, corrected for their number, and letters that say who differs from whom."""

from __future__ import annotations

import string
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from flowleap.envs.comparison import compare_scores, compare_success, interval_of_mean
from flowleap.envs.evaluations import Policy, aligned
from flowleap.envs.statistics import rate


def rank(policies: Sequence[Policy], metric: str, alpha: float) -> dict[str, Any]:
    """Compare every pair of policies by `metric`, with Holm's correction.

    Returns:
        `metric`; `policies`, best first: each `label`, `runs`, `episodes` a run, `mean`, its 95 % `interval`, `count`
        and `n` where it is a rate, the means `per_run`, `letters`; `pairs`: each `a`, `b` (labels, the better first),
        `episodes`, `paired`, what `compare_success` or `compare_scores` return, `p_holm`, `different`.

    Raises:
        FlowleapError: the files do not hold `metric`, or two policies share only some seeds.
    """
    rows = sorted((_describe(policy, metric) for policy in policies), key=lambda row: -row["mean"])
    known = {policy.label: policy for policy in policies}
    pairs = []
    for a, b in combinations([row["label"] for row in rows], 2):
        first, second, paired = aligned(known[a], known[b], metric)
        test = compare_success if known[a].is_rate(metric) else compare_scores
        episodes = [len(first[0]), len(second[0])]
        pairs.append({"a": a, "b": b, "episodes": episodes, "paired": paired, **test(first, second, paired)})
    for pair, p in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair |= {"p_holm": p, "different": p <= alpha}
    places = {row["label"]: i for i, row in enumerate(rows)}
    told = [(places[pair["a"]], places[pair["b"]]) for pair in pairs if pair["different"]]
    for row, own in zip(rows, letters(len(rows), told), strict=True):
        row["letters"] = own
    return {"metric": metric, "policies": rows, "pairs": pairs}


def _describe(policy: Policy, metric: str) -> dict[str, Any]:
    runs = policy.runs(metric)
    row: dict[str, Any] = {
        "label": policy.label,
        "runs": len(runs),
        "episodes": len(runs[0]),
        "mean": float(np.mean([own.mean() for own in runs])),
        "per_run": [float(own.mean()) for own in runs],
    }
    if policy.is_rate(metric) and len(runs) == 1:
        own = rate([bool(x) for x in runs[0]])
        return row | {"interval": own["interval"], "count": own["count"], "n": own["n"]}
    return row | {"interval": interval_of_mean(runs)}


def format_pair(metric: str, pair: dict[str, Any], alpha: float) -> str:
    """One line for people about a pair of `rank`."""
    low, high = pair["interval"]
    kind = "paired" if pair["paired"] else "unpaired"
    episodes = " and ".join(map(str, dict.fromkeys(pair["episodes"])))
    alone = "; won alone on {} and {} seeds".format(*pair["discordant"]) if "discordant" in pair else ""
    corrected = f", by Holm {pair['p_holm']:.2g}" if pair["p_holm"] != pair["p_value"] else ""
    told = "different" if pair["different"] else "not told apart"
    return (
        f"{pair['a']} - {pair['b']}: {metric} {pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}] "
        f"({pair['interval_method']}), {pair['test']} on {episodes} {kind} episodes{alone}: "
        f"p = {pair['p_value']:.2g}{corrected}, {told} at alpha {alpha:g}"
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests: p <= alpha then errs in any of them with probability <= alpha (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(p) for p in adjusted]


def letters(n: int, different: Sequence[tuple[int, int]]) -> list[str]:
    """Compact letter display of n policies, best first: two share a letter if and only if they are not `different`.

    Insert and absorb (Piepho, Journal of Computational and Graphical Statistics 13, 456, 2004): each letter is a set
    of policies; a pair that differs splits the sets that hold both, and sets within others go. Then letters that say
    nothing of their own go as well.
    """
    sets: list[frozenset[int]] = [frozenset(range(n))]
    for i, j in different:
        split = [s - {x} for s in sets if {i, j} <= s for x in (i, j)]
        sets = list(dict.fromkeys([*(s for s in sets if not {i, j} <= s), *split]))
        sets = [s for s in sets if not any(s < other for other in sets)]
    for s in sorted(sets, key=len):
        others = [other for other in sets if other != s]
        pairs = [*combinations(sorted(s), 2), *((i, i) for i in s)]
        if all(any({i, j} <= other for other in others) for i, j in pairs):
            sets = others
    sets.sort(key=sorted)
    return ["".join(_letter(k) for k, s in enumerate(sets) if i in s) for i in range(n)]


def _letter(k: int) -> str:
    """A to z, A to Z, then letters with a number: a1, b1 and so on."""
    letter = string.ascii_letters[k % 52]
    return letter if k < 52 else f"{letter}{k // 52}"
