"""What `flowleap report` writes: scores with their conditions, curves, failures, times, options, on one page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowleap.datasets.quality import charts
from flowleap.datasets.quality.web_page import fill, safe
from flowleap.envs.protocols import FLOWLEAP
from flowleap.envs.run_report.failures import Gallery
from flowleap.envs.run_report.folder import RunFolder
from flowleap.envs.run_report.results import Evaluation, Number

TEMPLATE = Path(__file__).with_name("page.html")
_TERMS = ("loss", "grad_norm")
_MOTION = {
    "jump": "jump where chunks meet",
    "interior": "the same inside of chunks",
    "acceleration": "acceleration, RMS",
    "jerk": "jerk, RMS",
    "clipped": "share of clipped actions",
}


def render(runs: Sequence[RunFolder], galleries: Sequence[Gallery], commands: Sequence[Sequence[str]]) -> str:
    """Return the page as text.

    Args:
        runs: one or more.
        galleries: of their failures.
        commands: for each run, the command lines that make it and its evaluations again.
    """
    labels = _labels(runs)
    quoted = [(label, run.headline) for label, run in zip(labels, runs, strict=True)]
    context = {
        "title": labels[0] if len(runs) == 1 else f"{len(runs)} runs",
        "paths": [str(run.path) for run in runs],
        "tiles": [_tile(label, evaluation) for label, evaluation in quoted],
        "problems": [problem for run in runs for problem in run.problems],
        "tables": list(_tables(runs, labels)),
        "progress": list(_progress(runs, labels)),
        "robustness": list(_robustness(runs, labels)),
        "training": list(_training(runs)),
        "legend": list(enumerate(labels[: charts.COLOURS])) if len(runs) > 1 else [],
        "galleries": galleries,
        "latency": [_latency(label, e) for label, run in zip(labels, runs, strict=True) for e in _timed(run)],
        "motion": _motion(runs, labels),
        "offline": [
            {"run": label, **_offline(found)}
            for label, run in zip(labels, runs, strict=True)
            for found in run.offline
        ],
        "differences": _differences(runs),
        "configs": [
            (label, json.dumps(run.config, indent=1, ensure_ascii=False, default=str))
            for label, run in zip(labels, runs, strict=True)
            if run.config
        ],
        "versions": _versions(runs),
        "commands": list(zip(labels, commands, strict=True)),
        "labels": labels,
    }
    return fill(TEMPLATE, context)


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """Names of the runs; their paths where two have the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _tile(label: str, evaluation: Evaluation | None) -> dict[str, str]:
    if evaluation is None:
        return {"label": label, "value": "not evaluated", "note": ""}
    low, high = evaluation.interval
    count = evaluation.success if evaluation.metric == "success" else None
    metric = evaluation.metric.replace("_", " ")
    note = (
        f"{metric}, {count['count']} of {count['n']}"
        if count
        else f"{metric}, {evaluation.episodes} episodes"
    )
    step = "" if evaluation.step is None else f", step {evaluation.step:,}"
    return {
        "label": f"{label}: {evaluation.task}",
        "value": f"{evaluation.value:.3g} [{low:.3g}, {high:.3g}]",
        "note": f"{note}, NFE {evaluation.nfe}{step}, protocol {evaluation.protocol}",
    }


def _tables(runs: Sequence[RunFolder], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One table for each task and protocol: scores under different conditions do not stand below each other."""
    found = [(label, e) for label, run in zip(labels, runs, strict=True) for e in run.evaluations]
    for task, protocol in dict.fromkeys((e.task, e.protocol) for _, e in found):
        own = [(label, e) for label, e in found if (e.task, e.protocol) == (task, protocol)]
        own.sort(
            key=lambda pair: (
                labels.index(pair[0]),
                -(pair[1].step or 0),
                len(pair[1].conditions),
                pair[1].nfe,
            )
        )
        first = own[0][1]
        yield {
            "task": task,
            "protocol": protocol,
            "published": protocol != FLOWLEAP.name,
            "note": str(first.data["summary"].get("seed_note", "")),
            "metric": first.metric.replace("_", " "),
            "score": any(e.metric != "success" for _, e in own),
            "steps": any(e.step is not None for _, e in own),
            "rows": [_row(label, e) for label, e in own],
            "conditions": any(e.conditions for _, e in own),
        }


def _row(label: str, e: Evaluation) -> dict[str, Any]:
    low, high = e.interval
    return {
        "run": label,
        "nfe": e.nfe,
        "step": "" if e.step is None else f"{e.step:,}",
        "count": f"{e.success['count']}/{e.success['n']}" if e.success else f"of {e.episodes}",
        "success": _rate(e.success) if e.success else "not reported",
        "score": f"{e.value:.3f} [{low:.3f}, {high:.3f}]" if e.metric != "success" else "",
        "latency": f"{e.latency['p50']:.2f} / {e.latency['p95']:.2f}",
        "conditions": ", ".join(e.conditions),
    }


def _rate(part: Number) -> str:
    low, high = part["interval"]
    return f"{part['rate']:.3f} [{low:.3f}, {high:.3f}]"


def _progress(runs: Sequence[RunFolder], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Score against training steps: evaluated checkpoints, and the evaluations during training."""
    kinds = dict.fromkeys((e.task, e.protocol, e.nfe, e.conditions) for run in runs for e in run.evaluations)
    for kind in kinds:
        drawn, names, metric = [], [], ""
        for label, run in zip(labels, runs, strict=True):
            points = {e.step: e for e in run.evaluations if (e.task, e.protocol, e.nfe, e.conditions) == kind}
            steps = sorted(step for step in points if step is not None)
            if len(steps) > 1:
                scores = [points[step].value for step in steps]
                drawn.append(charts.Curve(steps, scores, [points[step].interval for step in steps]))
                names.append(label)
                metric = points[steps[0]].metric.replace("_", " ")
        if drawn:
            task, protocol, nfe, conditions = kind
            title = ", ".join([f"{task}, {metric} at NFE {nfe}", f"protocol {protocol}", *conditions])
            svg = charts.curves(drawn, "gradient steps", f"{title}, against gradient steps")
            yield {"title": title, "note": "with 95 % intervals", "svg": safe(svg), "legend": names}
    during = [(label, run.logged("eval/score")) for label, run in zip(labels, runs, strict=True)]
    drawn = [charts.Curve(*points) for _, points in during if len(points[0]) > 1]
    if drawn:
        svg = charts.curves(drawn, "gradient steps", "score during training, against gradient steps")
        names = [label for label, points in during if len(points[0]) > 1]
        note = "few episodes, on seeds of their own: for the course, not to be quoted"
        yield {"title": "score during training", "note": note, "svg": safe(svg), "legend": names}


def _robustness(runs: Sequence[RunFolder], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Score against the strength of each kind of perturbation."""
    for label, run in zip(labels, runs, strict=True):
        for found in run.robustness:
            title = f"{label}: {found['title']}"
            drawn = [
                (kind, safe(charts.curves([charts.Curve(*points)], kind, f"{title}, against {kind}")))
                for kind, points in found["curves"].items()
            ]
            yield {"title": title, "charts": drawn}


def _training(runs: Sequence[RunFolder]) -> Iterator[tuple[str, Any]]:
    """Loss, gradient norm and, of a single run, the terms of the loss; logarithmic where all are positive."""
    terms: Sequence[str] = _TERMS
    if len(runs) == 1:
        other = {"step", "time", "lr", "samples_per_s", "data_share", *_TERMS}
        terms = [*_TERMS, *sorted({k for row in runs[0].metrics for k in row if "/" not in k} - other)]
    for term in terms:
        # A run without it keeps its colour.
        drawn = [charts.Curve(*run.logged(term)) for run in runs]
        if any(curve.x for curve in drawn):
            yield term, safe(charts.curves(drawn, "gradient steps", f"{term} over training", log=True))


def _timed(run: RunFolder) -> list[Evaluation]:
    """The quoted evaluation, and one of each export."""
    others = {e.file.parent: e for e in run.evaluations if e.exported and e is not run.headline}
    return [*([run.headline] if run.headline else []), *others.values()]


def _latency(label: str, e: Evaluation) -> dict[str, Any]:
    title = ", ".join([label, f"NFE {e.nfe}", *e.conditions])
    svg = ""
    if e.histogram is not None:
        edges, counts = e.histogram
        svg = safe(charts.bins(np.array(counts), np.array(edges), "milliseconds", f"latency of {title}"))
    numbers = ", ".join(f"{name} {e.latency[name]:.2f} ms" for name in ("p50", "p95", "mean"))
    return {"title": title, "numbers": numbers, "svg": svg, "where": _where(e)}


def _where(e: Evaluation) -> str:
    actor, origin = e.data.get("actor") or {}, e.data.get("origin") or {}
    device, threads = actor.get("device", "cpu"), actor.get("threads", 1)
    machine = f", {origin['platform']}" if "platform" in origin else ""
    return f"{device}, {threads} {'thread' if threads == 1 else 'threads'}{machine}"


def _motion(runs: Sequence[RunFolder], labels: Sequence[str]) -> dict[str, Any]:
    """A row for each evaluation that measured it, a column a measure."""
    found = [
        (label, e) for label, run in zip(labels, runs, strict=True) for e in run.evaluations if e.measures
    ]
    names = list(dict.fromkeys(name for _, e in found for name in e.measures))
    rows = []
    for label, e in found:
        place = ", ".join([label, f"NFE {e.nfe}", *([f"step {e.step:,}"] if e.step else []), *e.conditions])
        cells = [_mean(e.measures[name]) if name in e.measures else "" for name in names]
        rows.append((place, f"{e.task}, {e.protocol}", cells))
    return {"names": [_MOTION.get(name, name) for name in names], "rows": rows}


def _mean(part: Number) -> str:
    low, high = part["interval"]
    return f"{part['mean']:.3g} [{low:.3g}, {high:.3g}]"


def _offline(found: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison with recorded actions: its numbers as text, its charts."""
    steps = [np.array(values) for values in found["horizon"].values()]
    top = max(float(values.max(initial=0)) for values in steps)
    horizon = charts.lines(
        np.arange(len(steps[0])),
        steps,
        (0, top),
        "step of the chunk",
        "error over the chunk, share of the range",
    )
    drawn = [
        {"title": f"{name}: {part['episode']}, dimension {dim}", "svg": safe(_followed(part, name, dim))}
        for name, part in found["drawn"].items()
        for dim in range(min(part["recorded"].shape[1], 4))
    ]
    return {**found, "horizon_svg": safe(horizon), "charts": drawn}


def _followed(part: Mapping[str, Any], name: str, dim: int) -> str:
    lines = [part[kind][:, dim] for kind in ("predicted", "recorded")]
    y_range = (min(line.min() for line in lines), max(line.max() for line in lines))
    label = f"{name} episode, dimension {dim}: predicted and recorded"
    return charts.lines(np.arange(len(lines[0])), lines, y_range, "frames", label)


def _differences(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """Options in which several runs differ."""
    flat = [dict(_flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for options in flat for key in options)
    rows = [(key, [options.get(key, "") for options in flat]) for key in keys if key != "run_dir"]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False, default=str)


def _versions(runs: Sequence[RunFolder]) -> list[tuple[str, str]]:
    """Package -> its versions in the evaluations; more than one where these differ."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for e in run.evaluations:
            origin = e.data.get("origin") or {}
            for name, text in {**(origin.get("versions") or {}), "python": origin.get("python", "?")}.items():
                found.setdefault(str(name), {})[str(text)] = None
    return [(name, ", ".join(texts)) for name, texts in found.items()]
