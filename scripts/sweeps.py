"""Sweeps of `flowleap eval`: every combination of the options that are lists, as one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from flowleap.envs.perturb import KINDS
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import parameters_of
from flowleap.policy.deploy.plan import Continuity
from flowleap.scripts.common import plain, say, show_table

Case = Mapping[str, Any]  # option -> its value in one evaluation
Rows = Sequence[Mapping[str, Any]]  # results of evaluations, each with its `options`

SWEPT = (
    "checkpoint_steps",
    "weights",
    "steps",
    "n_action_steps",
    "noise_seed",
    *parameters_of(Continuity),
    *KINDS,
)


def cases_of(cfg: DictConfig) -> list[Case] | None:
    """Every combination of the options that `cfg` gives lists of; None where it gives none.

    Raises:
        FlowleapError: a list is empty, or `checkpoint_steps=all` finds no checkpoints.
    """
    if cfg.checkpoint_steps == "all":
        cfg.checkpoint_steps = sorted(_checkpoints(cfg.checkpoint))
    lists = {name: plain(cfg[name]) for name in SWEPT if isinstance(cfg[name], ListConfig)}
    for name, values in lists.items():
        if not values:
            raise FlowleapError(f"{name}=[] leaves nothing to evaluate")
    if not lists:
        return None
    return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]


def checkpoint_at(run: str, step: int | None) -> str:
    """The checkpoint of a run directory after `step` gradient steps; `run` itself where that is None.

    Raises:
        FlowleapError: there is none; the message names those that are there.
    """
    if step is None:
        return run
    known = _checkpoints(run)
    if step not in known:
        have = f"it has those of {', '.join(map(str, sorted(known)))}"
        raise FlowleapError(
            f"{run} has no checkpoint of step {step}; {have} (trainer.keep_checkpoints keeps more)"
        )
    return str(known[step])


def _checkpoints(run: str) -> dict[int, Path]:
    """Gradient steps -> checkpoint, of a run directory."""
    found = (Path(run).expanduser() / "checkpoints").glob("step_*")
    known = {int(path.name.removeprefix("step_")): path for path in found if path.name[5:].isdigit()}
    if not known:
        raise FlowleapError(
            f"checkpoint_steps chooses among the checkpoints of a run, and {run} is no run directory"
        )
    return known


def sweep(
    cfg: DictConfig, cases: Sequence[Case], evaluate: Callable[[DictConfig], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The results of `evaluate` for `cfg` with each case's options, which they hold as `options`."""
    rows = []
    for number, case in enumerate(cases, 1):
        say(
            f"{number}/{len(cases)}: {' '.join(f'{name}={value}' for name, value in case.items()) or 'nothing changed'}"
        )
        one = OmegaConf.create(cfg)
        with open_dict(one):
            one.update(case)
        results = evaluate(one)
        del results["config"]  # that of the sweep stands beside all of them
        rows.append({"options": dict(case), **results})
    return rows


def show_sweep(rows: Rows) -> None:
    """Print a line an evaluation: its options, score, diversity, motion and latency."""
    each = [{name: str(value) for name, value in row["options"].items()} for row in rows]
    if any(
        set(options) != set(each[0]) for options in each
    ):  # one kind after the other, see `flowleap robustness`
        texts = [" ".join(f"{name}={value}" for name, value in options.items()) for options in each]
        each = [{"changed": text or "nothing"} for text in texts]
    lines = [options | _line(row) for options, row in zip(each, rows, strict=True)]
    head = list(dict.fromkeys(column for line in lines for column in line if column != "steps"))
    summary = rows[0]["summary"]
    title = f"{summary['task']}, {summary['episodes']} episodes each, protocol {rows[0]['protocol']['name']}"
    show_table(head, [[line.get(column, "") for column in head] for line in lines], title)


def means_of_best(rows: Rows) -> list[dict[str, Any]]:
    """What published scores of the protocol are: means over the best of a run's checkpoints, beside the last one.

    One entry for each combination of the other options; none where checkpoints are not swept, or the protocol's
    published scores are no such means.
    """
    schedule = rows[0]["protocol"].get("schedule")
    if not schedule or "checkpoint_steps" not in rows[0]["options"]:
        return []
    scores: dict[str, dict[int, float]] = {}  # the other options -> checkpoint -> score
    for row in rows:
        others = {name: value for name, value in row["options"].items() if name != "checkpoint_steps"}
        of_steps = scores.setdefault(json.dumps(others), {})
        of_steps[row["options"]["checkpoint_steps"]] = row["summary"]["headline"]["value"]
    entries = []
    for text, of_steps in scores.items():
        best = sorted(of_steps.values(), reverse=True)[: schedule[1]]
        entries.append(
            {
                "options": json.loads(text),
                "checkpoints": len(of_steps),
                "published": schedule,
                "mean_of_best": sum(best) / len(best),
                "last": of_steps[max(of_steps)],
            }
        )
    return entries


def show_means_of_best(entries: Rows) -> None:
    """Print a line an entry of `means_of_best`."""
    for entry in entries:
        words = "".join(f"{name}={value} " for name, value in entry["options"].items())
        count, best = entry["published"]
        own = min(best, entry["checkpoints"])
        say(
            f"{words}mean of the best {own} of {entry['checkpoints']} checkpoints {entry['mean_of_best']:.3f} "
            f"(published scores: {best} of {count}); the last one {entry['last']:.3f}"
        )


def _line(row: Mapping[str, Any]) -> dict[str, str]:
    """What came of an evaluation, by column."""
    summary = row["summary"]
    headline, success = summary["headline"], summary["success"]
    score = "{value:.3f} [{low:.3f}, {high:.3f}]".format(
        value=headline["value"], low=headline["interval"][0], high=headline["interval"][1]
    )
    line = {"NFE": str(row["nfe"]), f"{headline['metric']} [95 %]": score}
    if headline["metric"] != "success" and summary["reports_success"]:
        line["success"] = f"{success['count']}/{success['n']}"
    if "modes" in summary:
        share = summary["modes"]["entropy_share"]
        line["entropy share"] = "-" if share is None else f"{share:.2f}"
    if "motion" in summary:
        ratio = summary["motion"]["ratio"]
        line["jump / interior"] = "-" if ratio is None else f"{ratio:.2f}"
    return line | {"ms a chunk": f"{summary['latency_ms']['p50']:.2f}"}
