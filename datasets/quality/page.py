"""What `flowleap inspect html=...` writes: a page about a dataset, with its plots and images inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION
from flowleap.datasets.interface import Dataset
from flowleap.datasets.quality import charts
from flowleap.datasets.quality.checks import Checks, grouped
from flowleap.datasets.quality.profile import Profile, Statistics
from flowleap.datasets.quality.web_page import fill, jpeg, safe

TEMPLATE = Path(__file__).with_name("page.html")
_ROWS = 32  # dimensions of a key in its table
_POINTS = 240  # points of a line
_PLOTTED_KEYS = 24  # keys with plots of several episodes; of more, one each
_APART = 20.0  # ratio of ranges from which dimensions are drawn on scales of their own
_STRIP = 6  # images of an episode
_IMAGE_SIDE = 160  # px


def render(format_name: str, source: Dataset, checks: Checks, profile: Profile) -> str:
    """Return the page as text."""
    findings = [*checks.findings, *profile.findings]
    lengths, hz = checks.lengths, source.spec.control_hz or checks.measured_hz
    cameras = [key for key, s in profile.columns.items() if s.column.image]
    context = {
        "name": source.path.name,
        "path": str(source.path),
        "format": format_name,
        "problems": grouped([f for f in findings if not f.note]),
        "n_findings": sum(not f.note for f in findings),
        "notes": grouped([f for f in findings if f.note]),
        "tiles": _tiles(source, lengths, hz),
        "spec": source.spec,
        "action_dtype": source.fields[ACTION].dtype,
        "rate": _rate(source, checks),
        "details": _details(source),
        "unused": source.unused,
        "lengths": _lengths(lengths),
        "length_facts": dict(
            shortest=lengths.min(), median=f"{np.median(lengths):g}", longest=lengths.max()
        ).items(),
        "network": _network(source, profile),
        "padded": [f"{100 * share:.1f}" for share in profile.padded()],
        "window": profile.spec,
        "columns": [_column(source, profile, key, hz) for key in profile.columns if key not in cameras],
        "cameras": [{"key": key, "strips": _strips(source, profile, key)} for key in cameras],
        "images_read": (len(profile.image_episodes), source.n_episodes),
    }
    return fill(TEMPLATE, context)


def _tiles(source: Dataset, lengths: NDArray, hz: float) -> list[tuple[str, str]]:
    """The few numbers above all others."""
    frames = int(lengths.sum())
    tiles = [("episodes", f"{len(lengths):,}"), ("frames", f"{frames:,}")]
    if hz:
        seconds = frames / hz
        tiles.append(("recorded", f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"))
    tiles.append(("rate", f"{hz:.4g} Hz" if hz else "unknown"))
    tiles.append(("action", f"{source.spec.action_dim}-dim"))
    return tiles


def _rate(source: Dataset, checks: Checks) -> str:
    stated = f"{source.spec.control_hz:.4g} Hz" if source.spec.control_hz else "not stated"
    return stated + (f"; {checks.measured_hz:.4g} Hz by the time stamps" if checks.measured_hz else "")


def _details(source: Dataset) -> list[tuple[str, str]]:
    """Origin and further attributes, as text."""
    facts = {"source": source.spec.source} if source.spec.source else {}
    return [(key, _text(value)) for key, value in {**facts, **source.attrs}.items()]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return text if len(text) <= 4000 else text[:4000] + " …"


def _lengths(lengths: NDArray) -> Any:
    """Histogram of the episode lengths."""
    low, high = int(lengths.min()), int(lengths.max())
    bins = int(min(32, max(high - low, 1)))
    end = max(high, low + 1)
    counts, _ = np.histogram(lengths, bins=bins, range=(low, end))
    return safe(charts.histogram(counts, low, end, "frames an episode", "episode lengths"))


def _network(source: Dataset, profile: Profile) -> list[dict[str, Any]]:
    """The window in the middle of the median episode: a chart a key, observations first."""
    if profile.spec is None:
        return []
    spec, episode = profile.spec, profile.median
    parts = []
    for key, values in profile.window(episode).items():
        action = key == ACTION
        x = np.arange(len(values)) if action else np.arange(1 - spec.n_obs_steps, 1)
        mean, std = profile.normalized[key]
        if action:
            executed = (0, min(spec.n_action_steps, len(values) - 1))
            lines = [values[:, i] for i in range(min(values.shape[1], charts.COLOURS))]
            svg = charts.lines(x, lines, (-1, 1), "steps ahead", f"action chunk, episode {episode}", executed)
            legend = _legend(values.shape[1])
        else:
            svg = charts.dots(list(values), (-1, 1), "dimension", f"{key}, as the network gets it")
            legend = [f"{-i} frame{'s' if i < -1 else ''} back" if i < 0 else "current frame" for i in x]
        part = {"key": key, "shape": [len(values), *profile.columns[key].column.shape], "svg": safe(svg)}
        part["legend"] = legend if len(legend) <= charts.COLOURS else []
        parts.append(part | {"mean": span(mean), "std": span(std)})
    return parts


def _column(source: Dataset, profile: Profile, key: str, hz: float) -> dict[str, Any]:
    """One key: its table of dimensions and its lines over a few episodes."""
    s = profile.columns[key]
    rows = [
        {
            "dim": i,
            "numbers": [charts.number(v) for v in (s.low[i], s.mean[i], s.high[i], s.std[i])],
            "constant": bool(s.low[i] == s.high[i]),
            "spark": safe(charts.sparkline(s.histogram[i])) if i < len(s.histogram) else "",
        }
        for i in range(min(len(s.low), _ROWS))
        if np.isfinite(s.low[i])
    ]
    episodes = profile.shown if len(profile.columns) <= _PLOTTED_KEYS else [profile.median]
    drawn = [int(i) for i in np.flatnonzero(np.isfinite(s.low))[: charts.COLOURS]]
    scaled = _apart(s, drawn)
    role = "observation" if key in source.spec.observations else "extra column"
    return {
        "key": key,
        "role": "action" if key == ACTION else role,
        "shape": list(s.column.shape),
        "dtype": s.column.dtype,
        "not_finite": s.not_finite,
        "constant": len(s.constant),
        "size": len(s.low),
        "rows": rows,
        "more": len(s.low) - _ROWS,
        "charts": [_episode(source, s, key, i, drawn, scaled, hz) for i in episodes if drawn],
        "legend": [str(i) for i in drawn] if len(s.low) > 1 else [],
        "scaled": scaled,
    }


def _apart(s: Statistics, drawn: list[int]) -> bool:
    """Whether the dimensions need scales of their own to be seen beside each other."""
    spans = (s.high - s.low)[drawn]
    moving = spans[spans > 0]
    if len(moving) < 2:
        return False
    widest = max(moving.max(), s.high[drawn].max() - s.low[drawn].min())
    return bool(widest > _APART * moving.min())


def _episode(
    source: Dataset, s: Statistics, key: str, index: int, drawn: list[int], scaled: bool, hz: float
) -> dict[str, Any]:
    """The lines of one episode; of points, those of their mean."""
    values = source.episode(index, [key])[key].astype(np.float64)
    values = values.reshape(len(values), -1, len(s.low)).mean(axis=1)
    step = max(1, -(-len(values) // _POINTS))
    frames = np.arange(0, len(values), step)
    low, span = s.low[drawn], np.where(s.high > s.low, s.high - s.low, 1.0)[drawn]
    curves = values[frames][:, drawn]
    if scaled:
        curves, y_range = (curves - low) / span, (0.0, 1.0)
    else:
        y_range = (float(s.low[drawn].min()), float(s.high[drawn].max()))
    what = f"mean of {key}" if s.column.kind == "points" else key
    label = f"{what} in {source.label(index)}"
    svg = charts.lines(frames / (hz or 1.0), list(curves.T), y_range, "seconds" if hz else "frames", label)
    return {"title": source.label(index), "frames": len(values), "svg": safe(svg)}


def span(values: NDArray) -> str:
    """The range of some normalised numbers, for people."""
    low, high = (f"{value:.2f}".replace("-", "−") for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _legend(size: int) -> list[str]:
    """The dimensions that have a line; none where there is only one."""
    return [str(i) for i in range(min(size, charts.COLOURS))] if size > 1 else []


def _strips(source: Dataset, profile: Profile, key: str) -> list[dict[str, Any]]:
    """A few frames of a few episodes."""
    strips = []
    for index in profile.shown[:3]:
        shown = zip(profile.places(index, _STRIP), profile.frames(index, key, _STRIP), strict=False)
        reach = source.fields[key].range
        images = [
            {"frame": int(frame), "data": jpeg(to_pixels(image, reach), _IMAGE_SIDE, _IMAGE_SIDE)}
            for frame, image in shown
        ]
        strips.append({"title": source.label(index), "images": images})
    return strips


def to_pixels(image: NDArray, reach: tuple[float, float] | None) -> NDArray[np.uint8]:
    """An image as people want to see it: colours as they are, depth [H, W, 1] of that range as grey [H, W]."""
    if reach is None:
        return image
    share = (image[..., 0] - reach[0]) / (reach[1] - reach[0])
    return (share * 255).clip(0, 255).astype(np.uint8)
