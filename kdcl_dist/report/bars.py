"""Stacked bars and heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from markupsafe import Markup

from kdcl_dist.report.axis import choose_scale, number
from kdcl_dist.report.svg import CHAR, WIDTH, image, text

__all__ = ["heat_map", "stacked_bars"]

BAR, GAP, LABEL = 24, 10, 13


def stacked_bars(
    ident: str, title: str, unit: str, parts: Sequence[str], bars: Mapping[str, Sequence[float]]
) -> Markup:
    """Horizontal bars, each the sum of its parts.

    Args:
        ident: id of the chart in the page.
        title: title of the chart.
        unit: unit of the values.
        parts: names of the parts, in order.
        bars: values of the parts, by name of the bar; NaN counts as 0.
    """
    clean = {name: [v if math.isfinite(v) else 0.0 for v in values] for name, values in bars.items()}
    scale = choose_scale([0.0, *(sum(values) for values in clean.values())])
    left = 12 + CHAR * min(LABEL, max(map(len, clean)))
    right = WIDTH - 12 - CHAR * max(len(number(sum(values), 1)) for values in clean.values())
    legend, top = _legend(parts)
    bottom = top + len(clean) * (BAR + GAP)
    body = [legend]
    for tick, label in zip(scale.ticks, scale.labels(), strict=True):
        x = left + scale.position(tick) * (right - left)
        body.append(f'<path class="grid" d="M{x:.1f} {top - 4:g}V{bottom:g}"/>')
        body.append(text(x, bottom + 16, label, "mid"))
    body.append(text((left + right) / 2, bottom + 33, unit, "mid unit"))
    for index, (name, values) in enumerate(clean.items()):
        y = top + index * (BAR + GAP)
        body.append(text(left - 6, y + BAR / 2 + 4.5, name, "end", LABEL))
        body.append(_bar(left, y, (right - left) / scale.high, parts, values))
    desc = f"Bars of {', '.join(parts)}, in {unit}. " + "; ".join(
        f"{name}: {number(sum(values), 1)} in all" for name, values in clean.items()
    )
    return image(ident, title, desc, bottom + 40, "".join(body))


def heat_map(
    ident: str, title: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]
) -> Markup:
    """A matrix of percentages as coloured cells with their numbers; the cell of a NaN shows a dash."""
    finite = [value for row in values for value in row if math.isfinite(value)]
    top = max(finite, default=0.0) or 1.0
    left = 12 + CHAR * min(LABEL, max(map(len, rows)))
    width, height = (WIDTH - left - 2) / len(columns), 34
    limit = max(3, int(width / CHAR))
    body = [text(left + (j + 0.5) * width, 16, name, "mid", limit) for j, name in enumerate(columns)]
    for i, name in enumerate(rows):
        y = 26 + i * height
        body.append(text(left - 6, y + height / 2 + 4.5, name, "end", LABEL))
        for j, value in enumerate(values[i]):
            shade = 0.04 + 0.66 * value / top if math.isfinite(value) else 0
            x = left + j * width
            body.append(
                f'<rect class="cell" x="{x:.1f}" y="{y}" width="{width - 2:.1f}" height="{height - 2}" '
                f'fill-opacity="{shade:.2f}"><title>{escape(name)}, {escape(columns[j])}</title></rect>'
            )
            body.append(text(x + width / 2 - 1, y + height / 2 + 3.5, number(value, 1), "mid"))
    said = (
        f"{name}: " + ", ".join(f"{c} {number(v, 1)}" for c, v in zip(columns, row, strict=True))
        for name, row in zip(rows, values, strict=True)
    )
    return image(ident, title, f"Percentages. {'; '.join(said)}.", 28 + len(rows) * height, "".join(body))


def _legend(parts: Sequence[str]) -> tuple[str, int]:
    """A colour sample and the name of each part, in lines, and the y coordinate where the plot begins."""
    body, x, y = [], 2.0, 4
    for index, name in enumerate(parts):
        width = 32 + CHAR * len(name)
        if x + width > WIDTH:
            x, y = 2.0, y + 20
        body.append(f'<rect class="p{index}" x="{x:g}" y="{y}" width="14" height="12"/>')
        body.append(text(x + 18, y + 11, name))
        x += width
    return "".join(body), y + 30


def _bar(left: float, y: float, scale: float, parts: Sequence[str], values: Sequence[float]) -> str:
    body, x = [], left
    for index, (name, value) in enumerate(zip(parts, values, strict=True)):
        width, shown = value * scale, number(value, 1)
        if value > 0:
            body.append(
                f'<rect class="p{index} part" x="{x:.1f}" y="{y}" width="{width:.2f}" height="{BAR}">'
                f"<title>{escape(name)}: {shown}</title></rect>"
            )
        if width > CHAR * len(shown) + 4:
            body.append(text(x + width / 2, y + BAR / 2 + 4.5, shown, "mid on"))
        x += width
    body.append(text(x + 5, y + BAR / 2 + 4.5, number(sum(values), 1), "total"))
    return "".join(body)
