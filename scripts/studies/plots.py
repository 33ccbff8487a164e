"""Pictures of a run: the training curve, and what one observation's action chunks look like at several NFE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowleap.scripts.common import logged

Rows = Sequence[Mapping[str, Any]]


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # unlike pyplot, needs no display and no closing

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def training_curve(run_dir: Path, out: Path) -> Path:
    """Draw every loss term that a run logged over gradient steps, on a logarithmic axis."""
    rows = logged(run_dir, "loss")
    known = {"step", "time", "loss", "grad_norm", "grad_norm_largest", "lr", "samples_per_s", "data_share"}
    names = {"fm": "anchor |u(x,t,t) - v|²", "sd": "self-distillation |u(x,t,s) - target|²"}
    figure, axes = _figure(1, 1, 6, 3.5)
    axis = axes[0, 0]
    for term in sorted(set(rows[0]) - known):
        axis.plot([r["step"] for r in rows], [r[term] for r in rows], label=names.get(term, term), lw=1.2)
    axis.set(xlabel="gradient steps", ylabel="loss term", yscale="log", title="training")
    axis.legend(frameon=False)
    return _save(figure, out)


def action_chunks(
    policy: Any, windows: Any, out: Path, nfes: Sequence[int] = (1, 2, 4), draws: int = 12
) -> Path:
    """Draw the chunks that a torch `Policy` predicts for one training observation, a column an NFE.

    The observation is that in the middle of the first episode; its recorded chunk is drawn beside them. All columns
    start from the same `draws` of noise.
    """
    import torch

    spec = policy.spec
    window = windows.gather(np.array([windows.episode_ends[0] // 2]))
    obs = {key: torch.from_numpy(x).repeat_interleave(draws, 0) for key, x in window["obs"].items()}
    seeded = torch.Generator().manual_seed(0)
    noise = torch.randn(draws, spec.horizon, spec.action_dim, generator=seeded)
    dims = min(spec.action_dim, 4)
    figure, axes = _figure(dims, len(nfes), 3 * len(nfes), 1.6 * dims)
    for column, steps in zip(axes.T, nfes, strict=True):
        with torch.no_grad():
            chunks = policy.chunk(obs, noise, steps).numpy()
        for dim, axis in enumerate(column):
            axis.plot(chunks[:, :, dim].T, color="tab:blue", alpha=0.35, lw=0.9)
            axis.plot(window["action"][0, :, dim], color="black", ls="--", lw=1.2)
            axis.axvspan(0, spec.n_action_steps - 1, color="tab:orange", alpha=0.08)
        column[0].set_title(f"NFE {steps}")
        column[-1].set_xlabel("step of the chunk")
    for dim, axis in enumerate(axes[:, 0]):
        axis.set_ylabel(f"action {dim}")
    figure.suptitle("one observation: sampled chunks (blue), demonstrated (dashed), executed part shaded")
    return _save(figure, out)


def toy_samples(
    cases: Mapping[str, tuple[np.ndarray, Mapping[int, np.ndarray], np.ndarray]], out: Path
) -> Path:
    """Scatter 2-D samples, a row a case and a column an NFE, coloured by the angle of their noise, beside the data.

    `cases`: name -> noise [N, 2], NFE -> samples [N, 2], data [N, 2].
    """
    columns = max(len(drawn) for _, drawn, _ in cases.values()) + 1
    figure, axes = _figure(len(cases), columns, 2.6 * columns, 2.8 * len(cases))
    for row, (name, (noise, drawn, truth)) in zip(axes, cases.items(), strict=True):
        angle = np.arctan2(noise[:, 1], noise[:, 0])
        for axis, (nfe, samples) in zip(row, drawn.items(), strict=False):
            axis.scatter(*samples.T, s=1, c=angle, cmap="twilight", rasterized=True)
            axis.set_title(f"{name.replace('_', ' ')}, NFE {nfe}", fontsize=9)
        row[-1].scatter(*truth.T, s=1, color="0.5", rasterized=True)
        row[-1].set_title("data", fontsize=9)
    for axis in axes.flat:
        axis.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xticks=[], yticks=[])
    return _save(figure, out)


def score_curves(rows: Rows, runs: Rows, metric: str, out: Path, title: str) -> Path:
    """Draw score against NFE and score against training time, one line or point an objective.

    `rows` are the `table` of a benchmark, `runs` its `runs`: where they have evaluations during training (`curve`),
    these are a third panel.
    """
    curves = {(run["objective"], run["seed"]): run for run in runs if run["curve"]}
    figure, axes = _figure(1, 3 if curves else 2, 13 if curves else 9, 3.8)
    left, right = axes[0, :2]
    for i, name in enumerate(dict.fromkeys(str(row["objective"]) for row in rows)):
        colour = f"C{i}"
        own = sorted((row for row in rows if row["objective"] == name), key=lambda row: int(row["nfe"]))
        nfes, scores = [row["nfe"] for row in own], [row["score"] for row in own]
        errors = np.abs(np.array([row["interval"] for row in own]).T - scores)
        left.plot(nfes, scores, "o-", ms=4, lw=1.2, label=name, color=colour)
        left.errorbar(nfes, scores, errors, fmt="none", lw=0.7, color=colour)
        minutes = [float(np.mean(row["train_minutes"])) for row in own]
        right.scatter(minutes, scores, s=14, color=colour)
        right.annotate(name, (minutes[0], max(scores)), fontsize=7, xytext=(3, 2), textcoords="offset points")
        for run in curves.values():
            if run["objective"] == name:
                pace = run["train_minutes"] / run["train_steps"]
                points = [(pace * point["step"], point["score"]) for point in run["curve"]]
                axes[0, 2].plot(*zip(*points, strict=True), ".-", lw=0.9, ms=4, color=colour)
    every = sorted({int(row["nfe"]) for row in rows})
    left.set(xscale="log", xlabel="NFE", ylabel=metric)
    left.set_xticks(every, [str(nfe) for nfe in every])
    left.minorticks_off()
    right.set(xlabel="training, minutes of one core", ylabel=metric)
    if curves:
        axes[0, 2].set(xlabel="minutes into training (few episodes, other seeds)", ylabel=metric)
    left.legend(frameon=False, fontsize=7)
    figure.suptitle(title)
    return _save(figure, out)


def gradient_norms(curves: Mapping[str, Rows], out: Path) -> Path:
    """Draw gradient norms over training (rows with `step` and `grad_norm`), logarithmic.

    A case named `objective-condition` is drawn in the panel of its condition; without one, in the first.
    """
    panels: dict[str, list[tuple[str, Rows]]] = {}
    for name, rows in curves.items():
        objective, _, condition = name.partition("-")
        panels.setdefault(condition.replace("_", " ") or "as it is", []).append((objective, rows))
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(n.partition("-")[0] for n in curves))}
    every = [row["grad_norm"] for rows in curves.values() for row in rows]
    columns = min(4, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = _figure(height, columns, 2.8 * columns, 2.3 * height)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (condition, cases) in zip(axes.flat, panels.items(), strict=False):
        for objective, rows in cases:
            norms = [row["grad_norm"] for row in rows]
            axis.plot([r["step"] for r in rows], norms, lw=0.8, label=objective, color=colours[objective])
        axis.set_title(condition, fontsize=9)
        axis.set(yscale="log", ylim=(0.8 * min(every), 1.25 * max(every)))
        axis.legend(frameon=False, fontsize=7)
    figure.supxlabel("gradient steps", fontsize=9)
    figure.supylabel("gradient norm before clipping", fontsize=9)
    return _save(figure, out)


def delay_curves(rows: Rows, title: str, out: Path) -> Path:
    """Draw score, success rate and boundary jump against the delay of chunks, one line a way of going on."""
    figure, axes = _figure(1, 3, 12, 3.4)
    for i, way in enumerate(dict.fromkeys(str(row["way"]) for row in rows)):
        own = [row for row in rows if row["way"] == way]
        delays = [row["delay"] for row in own]
        parts = [[row["score"] for row in own], [row["success"] for row in own], [row["jump"] for row in own]]
        for axis, part in zip(axes[0], parts, strict=True):
            values = [one.get("mean", one.get("rate")) for one in part]
            errors = np.abs(np.array([one["interval"] for one in part]).T - values)
            axis.plot(delays, values, "o-", ms=4, lw=1.2, label=way, color=f"C{i}")
            axis.errorbar(delays, values, errors, fmt="none", lw=0.7, color=f"C{i}")
    for axis, name in zip(axes[0], ("score", "success rate", "jump where chunks meet"), strict=True):
        axis.set(xlabel="delay, control steps", ylabel=name, xticks=sorted({row["delay"] for row in rows}))
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.suptitle(title)
    return _save(figure, out)


def robustness_curves(curves: Mapping[str, Rows], metric: str, title: str, out: Path) -> Path:
    """Draw the score against the strength of each kind of perturbation, a panel each, with 95 % intervals."""
    columns = min(3, len(curves))
    height = -(-len(curves) // columns)
    figure, axes = _figure(height, columns, 3.2 * columns, 2.6 * height)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (kind, points) in zip(axes.flat, curves.items(), strict=False):
        strengths, scores = [p["strength"] for p in points], [p["score"] for p in points]
        errors = np.abs(np.array([p["interval"] for p in points]).T - scores)
        axis.errorbar(strengths, scores, errors, fmt="o-", ms=4, lw=1.2, elinewidth=0.7)
        axis.set(xlabel=kind.replace("_", " "), ylabel=metric.replace("_", " "))
        if kind in ("friction", "mass"):  # factors
            axis.set_xscale("log", base=2)
            axis.set_xlabel(f"{kind}, factor")
            axis.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
            axis.minorticks_off()
        if metric != "sum_reward":
            axis.set_ylim(-0.03, 1.03)
    figure.suptitle(title)
    return _save(figure, out)


def predicted_and_recorded(drawn: Mapping[str, Any], title: str, out: Path, dims: int = 8) -> Path:
    """Draw the actions that were recorded and those of chunks along them, a column an episode, a row a dimension.

    `drawn`: name -> `episode`, and `recorded` and `predicted` [T, A].
    """
    size = min(dims, len(next(iter(drawn.values()))["recorded"][0]))
    figure, axes = _figure(size, len(drawn), 5 * len(drawn), 1.5 * size + 0.8)
    for column, (name, part) in zip(axes.T, drawn.items(), strict=True):
        recorded, predicted = np.array(part["recorded"]), np.array(part["predicted"])
        for dim, axis in enumerate(column):
            axis.plot(predicted[:, dim], color="tab:blue", lw=1.0, label="predicted")
            axis.plot(recorded[:, dim], color="black", ls="--", lw=1.0, label="recorded")
        column[0].set_title(f"{name}: {part['episode']}", fontsize=9)
        column[-1].set_xlabel("frame")
    for dim, axis in enumerate(axes[:, 0]):
        axis.set_ylabel(f"action {dim}")
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=9)
    return _save(figure, out)
