"""Points with their intervals, one below the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from markupsafe import Markup

from kdcl_dist.report.axis import choose_scale, number
from kdcl_dist.report.svg import CHAR, WIDTH, image, marker, style, text
from kdcl_dist.utils.intervals import Interval

__all__ = ["Point", "point_chart"]

TOP, ROW, FOOT, LABEL = 10.0, 28.0, 46.0, 18
#: Upper bound of the mean width of a bold character.
BOLD = 8.6


class Point(NamedTuple):
    """A row of a chart: its name, the index of its colour and marker as `svg.style`, and its interval."""

    label: str
    style: int
    interval: Interval


def point_chart(
    ident: str, title: str, unit: str, points: Sequence[Point], digits: int, *, zero: bool = False
) -> Markup:
    """A chart as SVG, with a row for each point and its value at the row's end.

    Args:
        ident: id of the chart in the page.
        title: title of the chart.
        unit: unit of the values.
        points: at least one; limits of an interval that are NaN are not drawn. The axis reaches at most twice
            the median half width beyond the values: the frame cuts off the interval of an arm with few runs.
        digits: decimals of the values.
        zero: whether the axis contains 0.
    """
    middle = [point.interval.value for point in points]
    halves = [point.interval.half_width for point in points if math.isfinite(point.interval.low)]
    reach = 2 * median(halves) if halves else 0.0
    frame = min(middle) - reach, max(middle) + reach
    ends = [min(max(end, frame[0]), frame[1]) for point in points for end in _ends(point.interval)]
    scale = choose_scale([*ends, 0.0] if zero else ends, wanted=4)
    values = [_value(point.interval.value, digits, signed=zero) for point in points]
    left = 12 + CHAR * min(LABEL, max(len(point.label) for point in points))
    right = WIDTH - 20 - BOLD * max(map(len, values))
    bottom = TOP + ROW * len(points)

    def across(value: float) -> float:
        """The place of a value in the picture, or the frame's nearest."""
        return left + min(max(scale.position(value), 0.0), 1.0) * (right - left)

    body = []
    for tick, label in zip(scale.ticks, scale.labels(), strict=True):
        x, kind = across(tick), "zero" if zero and tick == 0 else "grid"
        body.append(f'<path class="{kind}" d="M{x:.1f} {TOP:g}V{bottom:g}"/>')
        body.append(text(x, bottom + 17, label, "mid"))
    body.append(text((left + right) / 2, bottom + 35, unit, "mid unit"))
    for index, (point, value) in enumerate(zip(points, values, strict=True)):
        y = TOP + (index + 0.5) * ROW
        body.append(text(left - 8, y + 4.5, point.label, "end", LABEL))
        body.append(f'<g class="{style(point.style)}">{_whisker(point.interval, across, y)}')
        body.append(f"{marker(across(point.interval.value), y, point.style)}</g>")
        body.append(text(WIDTH - 6, y + 4.5, value, "end total"))
    return image(ident, title, _describe(points, unit, digits), bottom + FOOT, "".join(body))


def _ends(interval: Interval) -> list[float]:
    """The value and the limits that there are."""
    return [end for end in interval[:3] if math.isfinite(end)]


def _whisker(interval: Interval, across: Callable[[float], float], y: float) -> str:
    """The line from the lower to the upper limit."""
    if not math.isfinite(interval.low):
        return ""
    return f'<path class="w" d="M{across(interval.low):.1f} {y:g}H{across(interval.high):.1f}"/>'


def _describe(points: Sequence[Point], unit: str, digits: int) -> str:
    """What a screen reader speaks."""
    said = []
    for label, _, interval in points:
        limits = ""
        if math.isfinite(interval.low):
            limits = f" (from {number(interval.low, digits)} to {number(interval.high, digits)})"
        said.append(f"{label} {number(interval.value, digits)}{limits}")
    return f"Points with intervals, in {unit}: {', '.join(said)}."


def _value(value: float, digits: int, *, signed: bool) -> str:
    return f"{'+' if signed and value > 0 else ''}{number(value, digits)}"
