"""A chart of means with their intervals, as an SVG file that stands alone.

The colours and markers are those of the report (`kdcl_dist/report/style.css`); lengths are in SVG units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from kdcl_dist.report.axis import Scale, choose_scale
from kdcl_dist.report.svg import marker
from kdcl_dist.utils.intervals import Interval

__all__ = ["interval_chart"]

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 720.0, 380.0, 56.0, 34.0, 52.0, 120.0
STYLE = """
svg { background: #fff; font: 13px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
text { fill: #1b1f23 } .soft { fill: #59636e }
.grid { stroke: #d9dee3; fill: none } .zero { stroke: #59636e; fill: none }
.m { fill: var(--c) } .bar { stroke: var(--c); stroke-width: 1.6; fill: none }
.c0 { --c: #0072b2 } .c1 { --c: #d55e00 } .c2 { --c: #009e73 }
.c3 { --c: #b5598d } .c4 { --c: #c98a00 } .c5 { --c: #3a9bd6 }
"""


def interval_chart(
    title: str, unit: str, axis: str, groups: Sequence[str], series: Mapping[str, Sequence[Interval | None]]
) -> str:
    """The chart: in each group a point with its interval for each series; those without any are not named.

    Args:
        title: what a screen reader speaks.
        unit: stands above the axis of the values.
        axis: stands below the groups.
        groups: names along the x axis.
        series: by name an interval for each group; None where there is none.
    """
    known = [each for values in series.values() for each in values if each is not None]
    ends = [end for each in known for end in (each.value, each.low, each.high) if math.isfinite(end)]
    scale = choose_scale([*ends, 0.0])
    body = [*_axis(scale, unit), *_groups(axis, groups)]
    named = [name for name, values in series.items() if any(values)]
    for number, (name, values) in enumerate(series.items()):
        body += _legend(number, named.index(name), name) if name in named else []
        for place, found in enumerate(values):
            if found is not None:
                offset = (number + 1) / (len(series) + 1)
                body += _point(scale, LEFT + (place + offset) * _group_width(groups), found, number)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title><style>{STYLE}</style>", *body, "</svg>\n"])


def _group_width(groups: Sequence[str]) -> float:
    return (WIDTH - LEGEND - LEFT) / len(groups)


def _y(scale: Scale, value: float) -> float:
    return HEIGHT - BOTTOM - scale.position(value) * (HEIGHT - BOTTOM - TOP)


def _text(x: float, y: float, content: str, anchor: str = "start", kind: str = "soft") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'


def _axis(scale: Scale, unit: str) -> list[str]:
    parts = [_text(4, 16, unit)]
    for tick, label in zip(scale.ticks, scale.labels(), strict=True):
        y, kind = _y(scale, tick), "zero" if tick == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT:g} {y:.1f}H{WIDTH - LEGEND:g}"/>')
        parts.append(_text(LEFT - 6, y + 4.5, label, "end"))
    return parts


def _groups(axis: str, groups: Sequence[str]) -> list[str]:
    width, bottom = _group_width(groups), HEIGHT - BOTTOM
    parts = [_text((LEFT + WIDTH - LEGEND) / 2, HEIGHT - 8, axis, "middle")]
    for place, name in enumerate(groups):
        parts.append(_text(LEFT + (place + 0.5) * width, bottom + 20, name, "middle", ""))
        if place:
            parts.append(f'<path class="grid" d="M{LEFT + place * width:.1f} {TOP:g}V{bottom:g}"/>')
    return parts


def _legend(number: int, place: int, name: str) -> list[str]:
    x, y = WIDTH - LEGEND + 16, TOP + 10 + 22 * place
    return [f'<g class="c{number % 6}">{marker(x, y, number)}</g>', _text(x + 12, y + 4.5, name, kind="")]


def _point(scale: Scale, x: float, found: Interval, number: int) -> list[str]:
    parts = [f'<g class="c{number % 6}">', marker(x, _y(scale, found.value), number), "</g>"]
    if math.isfinite(found.low):
        low, high = _y(scale, found.low), _y(scale, found.high)
        path = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
        parts.insert(1, f'<path class="bar" d="{path}"/>')
    return parts
