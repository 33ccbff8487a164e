"""Small charts as inline SVG, drawn by matplotlib, in the colours of the page, whose light and dark themes they follow.

matplotlib gets stand-ins for the colours, which become variables of the style sheet in the SVG.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEW = 12  # points of a curve that are marked
COLOURS = 6  # variables c0 .. c5 of the style sheet
_STAND_INS = {
    name: f"#{0xABC000 + i:06x}"
    for i, name in enumerate(["rule", "soft", "bar", *(f"c{i}" for i in range(COLOURS))])
}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 8.5,
    "axes.edgecolor": _STAND_INS["rule"],
    "axes.labelcolor": _STAND_INS["soft"],
    "xtick.color": _STAND_INS["soft"],
    "ytick.color": _STAND_INS["soft"],
    "grid.color": _STAND_INS["rule"],
    "axes.prop_cycle": f"cycler('color', {[_STAND_INS[f'c{i}'] for i in range(COLOURS)]})",
}


class Chart:
    """One pair of axes; draw on `axes`, then take `svg`.

    Args:
        unit: stands below the horizontal axis.
        label: read aloud.
    """

    def __init__(self, unit: str, label: str) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        self._style, self._label = matplotlib.rc_context, label
        with self._style(_STYLE):
            figure = Figure(figsize=(3, 1.56), layout="constrained")
            self.axes: Any = figure.add_subplot(xlabel=unit)
            self.axes.grid(axis="y")
            self.axes.set_axisbelow(True)
            self.axes.tick_params(length=0)
            self.axes.spines[["top", "left", "right"]].set_visible(False)
            self.axes.locator_params(nbins=4)

    def svg(self) -> str:
        """Return the chart as an `<svg>` element without references to anything outside of it."""
        stream, metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with self._style(_STYLE):
            self.axes.figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
        text = stream.getvalue()
        text = re.sub(r"(?s)<metadata>.*?</metadata>|<!--.*?-->|\n", "", text[text.index("<svg") :])
        # Names that nothing refers to would be there in every chart.
        text = re.sub(r' id="(?!p|m)[^"]*"', "", text)
        for name, colour in _STAND_INS.items():
            text = text.replace(colour, f"var(--{name})")
        return text.replace("<svg", f'<svg class="chart" role="img" aria-label="{escape(self._label)}"', 1)


def histogram(counts: NDArray, low: float, high: float, unit: str, label: str) -> str:
    """Bars over [low, high] with counts on the left."""
    chart = Chart(unit, label)
    chart.axes.stairs(counts, np.linspace(low, high, len(counts) + 1), fill=True, color=_STAND_INS["bar"])
    return chart.svg()


def lines(
    x: NDArray,
    series: Sequence[NDArray],
    y_range: tuple[float, float],
    unit: str,
    label: str,
    shaded: tuple[float, float] | None = None,
) -> str:
    """One line a series [T] over `x` [T]; gaps where a value is not finite, dots where one stands alone.

    `shaded` is a part of the horizontal axis.
    """
    chart = Chart(unit, label)
    if shaded is not None:
        chart.axes.axvspan(*shaded, color=_STAND_INS["bar"], alpha=0.2, linewidth=0)
    for values in series:
        finite = np.concatenate(([False], np.isfinite(values), [False]))
        alone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:]).tolist()
        shown = np.where(finite[1:-1], values, np.nan)
        chart.axes.plot(x, shown, linewidth=1.2, marker=".", markevery=alone)
    low, high = y_range
    margin = (high - low) * 0.05 if high > low else 1.0
    chart.axes.set_ylim(low - margin, high + margin)
    return chart.svg()


@dataclass(frozen=True)
class Curve:
    """A line through points of its own.

    Attributes:
        x, y: [T]; what is not finite leaves a gap.
        interval: ends [T, 2] of a bar at each point.
    """

    x: Sequence[float]
    y: Sequence[float]
    interval: Sequence[Sequence[float]] | None = None


def curves(drawn: Sequence[Curve], unit: str, label: str, log: bool = False) -> str:
    """Lines over points that they do not share; a vertical axis that is logarithmic where `log` and all are positive.

    Points are marked where there are few.
    """
    chart = Chart(unit, label)
    positive = True
    for i, curve in enumerate(drawn):
        x, y = np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)
        y = np.where(np.isfinite(y), y, np.nan)
        positive &= bool((y[~np.isnan(y)] > 0).all())
        colour = _STAND_INS[f"c{i % COLOURS}"]
        chart.axes.plot(x, y, color=colour, linewidth=1.2, marker="." if len(x) <= _FEW else "")
        if curve.interval is not None:
            low, high = np.asarray(curve.interval, np.float64).T
            chart.axes.vlines(x, low, high, color=colour, linewidth=0.8)
    if log and positive:
        chart.axes.set_yscale("log")
    return chart.svg()


def bins(counts: NDArray, edges: NDArray, unit: str, label: str) -> str:
    """A histogram with bins [n] between `edges` [n + 1] > 0, on a logarithmic axis."""
    chart = Chart(unit, label)
    chart.axes.set_xscale("log")
    chart.axes.stairs(counts, edges, fill=True, color=_STAND_INS["bar"])
    chart.axes.xaxis.set_major_formatter("{x:g}")
    return chart.svg()


def dots(rows: Sequence[NDArray], y_range: tuple[float, float], unit: str, label: str) -> str:
    """A dot for each number of each row [size], over its index; later rows are drawn on top, in other colours."""
    chart = Chart(unit, label)
    for i, row in enumerate(rows):
        place = np.arange(len(row)) + (i - (len(rows) - 1) / 2) * 0.15
        chart.axes.plot(place, row, ".", markersize=4)
    chart.axes.set(xlim=(-0.5, len(rows[0]) - 0.5), ylim=(y_range[0] - 0.05, y_range[1] + 0.05))
    chart.axes.xaxis.get_major_locator().set_params(integer=True)
    return chart.svg()


def sparkline(counts: NDArray) -> str:
    """A histogram without axes, for a cell of a table; heights are square roots, so that rare values show."""
    top = math.sqrt(max(float(counts.max(initial=0)), 1.0))
    heights = [max(18 * math.sqrt(float(count)) / top, 1) for count in counts]
    bars = "".join(f"M{2 * i} 20v-{h:.1f}h1.6v{h:.1f}z" for i, h in enumerate(heights) if counts[i])
    return (
        f'<svg class="spark" viewBox="0 0 {2 * len(counts)} 20" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{bars}"/></svg>'
    )


def number(value: float) -> str:
    """A number as people write it."""
    return f"{value:.4g}".replace("-", "−")
