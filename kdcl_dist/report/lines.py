"""Line charts over epochs; the name of each line stands at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdcl_dist.report.axis import MINUS, Scale, choose_scale
from kdcl_dist.report.svg import CHAR, WIDTH, image, marker, spread, style, text

__all__ = ["Line", "line_chart"]

HEIGHT, TOP, BOTTOM, GAP = 250.0, 28.0, 40.0, 16.0
LABEL = 14


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: name of the line.
        style: index of its colour, dash and marker; see `kdcl_dist.report.svg.style`.
        points: finite (epoch, value) pairs in order of epochs, at least one.
        band: (epoch, low, high) of the interval around the line; empty for none.
    """

    label: str
    style: int
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Area:
    """The rectangle of the plot in the picture, and its two scales."""

    left: float
    right: float
    bottom: float
    x: Scale
    y: Scale

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The coordinates of a point in the picture."""
        across, up = self.x.position(x), self.y.position(y)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - TOP)

    @property
    def digits(self) -> int:
        """Decimals that resolve a 2000th of the y axis, which is less than a pixel."""
        span = _drawn(self.y, self.y.high) - _drawn(self.y, self.y.low)
        return max(0, math.ceil(-math.log10(span / 2000)))


def line_chart(ident: str, title: str, unit: str, lines: Sequence[Line], *, log: bool = False) -> Markup:
    """A chart as SVG.

    Args:
        ident: id of the chart in the page.
        title: title of the chart.
        unit: unit of the values; it stands above their axis.
        lines: at least one.
        log: whether the axis is logarithmic if all values are positive and span more than a factor of 30.
    """
    values = [y for line in lines for _, y in line.points]
    # A band can be far wider than all lines. The axis contains its end; the frame cuts off the rest.
    values += [limit for line in lines for _, *limits in line.band[-1:] for limit in limits]
    epochs = [x for line in lines for x, _ in line.points]
    y = choose_scale(values, log=log)
    height = max(HEIGHT, TOP + BOTTOM + GAP * len(lines))
    left = 12 + CHAR * max(len(label) for label in y.labels())
    right = WIDTH - 32 - CHAR * min(LABEL, max(len(line.label) for line in lines))
    area = Area(left, right, height - BOTTOM, choose_scale(epochs, whole=True, tight=True), y)
    body = _axes(area, unit) + _lines(area, lines) + _ends(area, lines)
    return image(ident, title, _describe(lines, unit), height, body, _data(area, unit))


def _axes(area: Area, unit: str) -> str:
    parts = [text(2, 14, unit, "unit")]
    for tick, label in zip(area.y.ticks, area.y.labels(), strict=True):
        _, y = area.at(area.x.low, tick)
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{area.left:.1f} {y:.1f}H{area.right:.1f}"/>')
        parts.append(text(area.left - 6, y + 4.5, label, "end"))
    for tick, label in zip(area.x.ticks, area.x.labels(), strict=True):
        x, _ = area.at(tick, area.y.low)
        parts.append(f'<path class="grid" d="M{x:.1f} {area.bottom:.1f}v4"/>')
        parts.append(text(x, area.bottom + 18, label, "mid"))
    parts.append(text((area.left + area.right) / 2, area.bottom + 35, "epoch", "mid unit"))
    return "".join(parts)


def _lines(area: Area, lines: Sequence[Line]) -> str:
    """The curves in the units of the data, with a transform into the picture's coordinates.

    The page so holds each value once, in few characters, and the read-out takes the values from the paths.
    """
    (x0, y0), (x1, y1) = area.at(area.x.low, area.y.low), area.at(area.x.high, area.y.high)
    low, high = _drawn(area.y, area.y.low), _drawn(area.y, area.y.high)
    a, d = (x1 - x0) / (area.x.high - area.x.low), (y1 - y0) / (high - low)
    parts = [f'<g transform="matrix({a:.8g} 0 0 {d:.8g} {x0 - a * area.x.low:.8g} {y0 - d * low:.8g})">']
    for line in lines:
        if len(line.band) > 1:
            edge = [(x, min(up, area.y.high)) for x, _, up in line.band]
            edge += [(x, max(down, area.y.low)) for x, down, _ in reversed(line.band)]
            parts.append(f'<path class="b {style(line.style)}" d="{_path(area, edge)}z"/>')
    for line in lines:
        parts.append(f'<path class="l {style(line.style)}" d="{_path(area, line.points)}"/>')
    return "".join(parts) + "</g>"


def _ends(area: Area, lines: Sequence[Line]) -> str:
    """A marker at the end of each line, and a thin line from there to the line's marker and name."""
    ends = [area.at(*line.points[-1]) for line in lines]
    heights = spread([y for _, y in ends], GAP, TOP, area.bottom)
    parts = []
    for line, (x, y), height in zip(lines, ends, heights, strict=True):
        lead = f'<path class="lead" d="M{x:.1f} {y:.1f}L{area.right + 14:.1f} {height:.1f}"/>'
        name = text(area.right + 26, height + 4.5, line.label, limit=LABEL)
        markers = marker(x, y, line.style) + marker(area.right + 18, height, line.style)
        parts.append(f'<g class="{style(line.style)}">{lead}{markers}{name}</g>')
    return "".join(parts)


def _drawn(scale: Scale, value: float) -> float:
    return math.log10(value) if scale.log else value


def _path(area: Area, points: Sequence[tuple[float, float]]) -> str:
    """A path of relative steps; each step is rounded such that errors do not accumulate."""
    parts, before, digits = [], (0.0, 0.0), area.digits
    for x, value in points:
        y = round(_drawn(area.y, value), digits)
        parts.append(_short(x - before[0], 0) + _glue(_short(y - before[1], digits)))
        before = x, y
    head, *rest = parts
    return f"m{head}" + (f"l{''.join(_glue(part) for part in rest).lstrip()}" if rest else "")


def _short(value: float, digits: int) -> str:
    """A number in the fewest characters that SVG allows."""
    shown = f"{value:.{digits}f}"
    if "." in shown:
        shown = shown.rstrip("0").rstrip(".")
    shown = "0" if shown in ("-0", "") else shown
    return shown.replace("0.", ".", 1) if shown.startswith(("0.", "-0.")) else shown


def _glue(shown: str) -> str:
    return shown if shown.startswith("-") else f" {shown}"


def _data(area: Area, unit: str) -> str:
    """Attributes for the read-out: whether values are logarithms, their decimals, and the x axis."""
    axis = f"{area.left:.1f} {area.right:.1f} {area.x.low:.8g} {area.x.high:.8g} {TOP:g} {area.bottom:g}"
    return f' class="chart" data-axis="{axis}" data-log="{int(area.y.log)}" data-digits="{area.digits}"'


def _describe(lines: Sequence[Line], unit: str) -> str:
    ends = (f"{line.label} {line.points[-1][1]:.4g}".replace("-", MINUS) for line in lines)
    last = max(line.points[-1][0] for line in lines)
    return f"Lines over the epochs, in {unit}. At the end (epoch {last:g}): {', '.join(ends)}."
