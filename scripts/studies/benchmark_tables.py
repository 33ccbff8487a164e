"""The tables of a benchmark: one line per objective and NFE, paired differences, Markdown and terminal output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowleap.envs.comparison import paired_difference
from flowleap.envs.statistics import bootstrap_mean, rate
from flowleap.scripts.common import say, show_table

Record = Mapping[str, Any]  # one evaluation: objective, nfe, seed, rows (one per episode), ...


def aggregate(records: Sequence[Record], episodes: int, metric: str) -> list[dict[str, Any]]:
    """One line per objective and NFE: mean and spread over training seeds, pooled intervals.

    `score` is the mean of `metric` over training seeds, its interval a bootstrap over evaluation seeds (for a
    success rate the pooled Wilson interval). A task with modes adds `entropy_share`, a mean over training seeds;
    `outcomes` are rates of what else the task reports of an episode.
    """
    table = []
    for (objective, nfe), group in _groups(records).items():
        values, pooled = _scores(group, metric), [episode for run in group for episode in run["rows"]]
        success, outcomes = rate([e["success"] for e in pooled]), group[0]["summary"].get("outcomes", {})
        per_seed = values.mean(1)
        interval = success["interval"] if metric == "success" else bootstrap_mean(values.mean(0))
        row = {
            "objective": objective,
            "nfe": nfe,
            "training_seeds": len(group),
            "episodes_per_seed": episodes,
            "score": float(per_seed.mean()),
            "interval": list(interval),
            "per_seed": [float(x) for x in per_seed],
            "seed_sd": float(per_seed.std(ddof=1)) if len(group) > 1 else None,
            "mean_max_reward": float(_scores(group, "max_reward").mean()),
            "success": success,
            "outcomes": {name: rate([e["outcomes"][name] for e in pooled]) for name in outcomes},
            "train_steps": [e["train_steps"] for e in group],
            "train_minutes": [e["train_minutes"] for e in group],
            "gradient_norms": [e["gradient_norm"] for e in group],
            "latency_ms_p50": float(np.median([e["summary"]["latency_ms"]["p50"] for e in group])),
        }
        shares = [e["summary"]["modes"]["entropy_share"] for e in group if "modes" in e["summary"]]
        if shares:
            known = [share for share in shares if share is not None]
            row["entropy_share"] = float(np.mean(known)) if known else None
            row["entropy_share_per_seed"] = shares
        table.append(row)
    return table


def differences(records: Sequence[Record], metric: str) -> list[dict[str, Any]]:
    """The first objective at its first NFE against every other cell, paired by evaluation seed.

    Training seeds are resampled as well as evaluation seeds.
    """
    groups = _groups(records)
    reference, *others = groups
    base = _scores(groups[reference], metric)
    rows = []
    for other in others:
        difference = paired_difference(base, _scores(groups[other], metric))
        rows.append({"a": list(reference), "b": list(other), "metric": metric, **difference})
    return rows


def markdown(results: Mapping[str, Any]) -> str:
    """The tables as Markdown, under the command that made them."""
    lines = [f"`{results['command']}`", ""]
    for key, title in (("table", "First budget"), ("table_equal_time", "Equal training time")):
        if key in results:
            rows = [cells(row) for row in results[key]]
            texts = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
            lines += [f"**{title}** (score: {results['metric']})", ""]
            lines += [*("| " + " | ".join(text) + " |" for text in texts), ""]
    return "\n".join(lines)


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """One line of the tables as text, by column."""
    success = row["success"]
    line = {
        "objective": row["objective"],
        "NFE": str(row["nfe"]),
        "score [95 %]": "{:.3f} [{:.3f}, {:.3f}]".format(row["score"], *row["interval"]),
        "each training seed": " ".join(f"{x:.3f}" for x in row["per_seed"]),
        "success [95 % Wilson]": "{count}/{n} [{interval[0]:.2f}, {interval[1]:.2f}]".format(**success),
        "train, min": f"{np.mean(row['train_minutes']):.1f}",
        "largest gradient norm": _worst(row["gradient_norms"]),
        "ms a chunk": f"{row['latency_ms_p50']:.2f}",
    }
    if "entropy_share" in row:
        share = row["entropy_share"]
        line["entropy share"] = "-" if share is None else f"{share:.2f}"
    return line | {name: f"{part['count']}/{part['n']}" for name, part in row["outcomes"].items()}


def _worst(norms: Sequence[Mapping[str, float] | None]) -> str:
    known = [norm["largest"] for norm in norms if norm]
    return f"{max(known):.3g}" if known else ""


def print_tables(results: Mapping[str, Any]) -> None:
    """Print every table, and the paired differences of the first."""
    for key, title in (("table", results["metric"]), ("table_equal_time", "equal training time")):
        if key in results:
            rows = [cells(row) for row in results[key]]
            show_table(rows[0], [row.values() for row in rows], title)
    for row in results["paired_differences"]:
        low, high = row["interval"]
        say(f"{row['a']} - {row['b']}: {row['mean']:+.3f} [{low:+.3f}, {high:+.3f}]")


def _scores(group: Sequence[Record], field: str) -> np.ndarray:
    """Per-episode values [training seeds, evaluation seeds] of one objective and NFE."""
    return np.array([[float(episode[field]) for episode in e["rows"]] for e in group])


def _groups(records: Sequence[Record]) -> dict[tuple[str, int], list[Record]]:
    groups: dict[tuple[str, int], list[Record]] = {}
    for e in records:
        groups.setdefault((e["objective"], e["nfe"]), []).append(e)
    return groups
