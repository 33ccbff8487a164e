"""Small charts as inline SVG: coloured by the page's style sheet, so they follow its light and dark themes.

Every chart has the same small size in its own units and grows with its column: text stays readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 300, 156
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 10, 36
COLOURS = 6  # classes c0 .. c5 of the style sheet


def histogram(counts: NDArray, low: float, high: float, unit: str, label: str) -> str:
    """Bars over [low, high] with counts on the left; `unit` stands below, `label` is read aloud."""
    top = nice_ticks(0, max(float(counts.max(initial=0)), 1), 3)[-1]
    bars = []
    step = (_WIDTH - _LEFT - _RIGHT) / len(counts)
    for i, count in enumerate(counts):
        if count:
            y = _y(float(count), 0, top)
            edges = [low + (high - low) * j / len(counts) for j in (i, i + 1)]
            bars.append(
                f'<rect class="bar" x="{_LEFT + i * step:.1f}" y="{y:.1f}" width="{max(step - 1, 0.5):.1f}" '
                f'height="{_HEIGHT - _BOTTOM - y:.1f}"><title>{number(edges[0])} to {number(edges[1])}: '
                f"{int(count)}</title></rect>"
            )
    return _frame("".join(bars), (low, high), (0, top), unit, label)


def lines(
    x: NDArray,
    series: Sequence[NDArray],
    y_range: tuple[float, float],
    unit: str,
    label: str,
    marks: str = "",
) -> str:
    """One line a series [T] over `x` [T]; gaps where a value is not finite. `marks` is drawn below the lines.

    Series of one value, or with `x` of one value, are dots.
    """
    low, high = y_range
    if not high > low:
        low, high = low - 1, high + 1
    ticks = nice_ticks(low, high, 3)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    x_range = (float(x[0]), float(x[-1])) if len(x) > 1 else (float(x[0]) - 1, float(x[0]) + 1)
    drawn = [marks]
    for i, values in enumerate(series):
        for part in np.split(np.arange(len(x)), np.flatnonzero(np.diff(np.isfinite(values))) + 1):
            if not np.isfinite(values[part]).all():
                continue
            points = [(place(float(x[j]), x_range), _y(float(values[j]), low, high)) for j in part]
            if len(points) == 1:
                drawn.append(
                    f'<circle class="dot c{i % COLOURS}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2"/>'
                )
            else:
                path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
                drawn.append(f'<path class="line c{i % COLOURS}" d="M{path}"/>')
    return _frame("".join(drawn), x_range, (low, high), unit, label)


def dots(rows: Sequence[NDArray], y_range: tuple[float, float], unit: str, label: str) -> str:
    """A dot for each number of each row [size], over its index; later rows are drawn on top, in other colours."""
    size = len(rows[0])
    x_range = (-0.5, size - 0.5)
    width = (place(1, x_range) - place(0, x_range)) / (len(rows) + 1)
    drawn = [
        f'<circle class="dot c{i % COLOURS}" cx="{place(j, x_range) + (i - (len(rows) - 1) / 2) * min(width, 6):.1f}" '
        f'cy="{_y(float(value), *y_range):.1f}" r="2.2"/>'
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
        if np.isfinite(value)
    ]
    return _frame("".join(drawn), x_range, y_range, unit, label, whole=True)


def band(x_range: tuple[float, float], first: float, last: float) -> str:
    """A shaded part of the horizontal axis, for `lines`."""
    a, b = place(first, x_range), place(last, x_range)
    return (
        f'<rect class="band" x="{a:.1f}" y="{_TOP}" width="{b - a:.1f}" height="{_HEIGHT - _TOP - _BOTTOM}"/>'
    )


def sparkline(counts: NDArray) -> str:
    """A histogram without axes, for a cell of a table; heights are square roots, so that rare values show."""
    top = math.sqrt(max(float(counts.max(initial=0)), 1.0))
    heights = [max(18 * math.sqrt(float(count)) / top, 1) for count in counts]
    bars = "".join(f"M{2 * i} 20v-{h:.1f}h1.6v{h:.1f}z" for i, h in enumerate(heights) if counts[i])
    return (
        f'<svg class="spark" viewBox="0 0 {2 * len(counts)} 20" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{bars}"/></svg>'
    )


def place(value: float, x_range: tuple[float, float]) -> float:
    """The horizontal position of a value."""
    low, high = x_range
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low if high > low else 1.0)


def number(value: float) -> str:
    """A number as people write it."""
    return f"{value:.4g}".replace("-", "−")


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, the first at most `low`, the last at least `high`."""
    span = high - low if high > low else 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _y(value: float, low: float, high: float) -> float:
    return (
        _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low if high > low else 1.0)
    )


def _frame(
    inside: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    unit: str,
    label: str,
    whole: bool = False,
) -> str:
    """Axes around a drawing; `whole`: the horizontal one counts."""
    parts = []
    for tick in nice_ticks(*y_range, 3):
        y = _y(tick, *y_range)
        if _TOP - 1 <= y <= _HEIGHT - _BOTTOM + 1:
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'
            )
    inner = [tick for tick in nice_ticks(*x_range, 4) if x_range[0] <= tick <= x_range[1]]
    if whole:
        inner = sorted({float(round(tick)) for tick in inner})
    for tick in inner:
        x = place(tick, x_range)
        end = "end" if x > _WIDTH - _RIGHT - 12 else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="{end}">{number(tick)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(unit)}</text>'
    )
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}{inside}</svg>"
    )
