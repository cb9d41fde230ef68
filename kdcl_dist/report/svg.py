"""Parts of inline SVG; style.css gives their classes colours and dashes. Lengths are in SVG units."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from kdcl_dist.utils.text import shown

__all__ = ["CHAR", "STYLES", "WIDTH", "image", "marker", "shorten", "spread", "style", "text"]

#: Width of every picture; one unit is about one pixel on the page.
WIDTH = 460
#: Upper bound of the mean width of a character.
CHAR = 7.2
#: Number of colours, of dashes and of markers.
STYLES = 6
#: Outlines of the markers, about 8 wide, around (0, 0).
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.5-3.5h7v7h-7z",
    "M0-4.5l4.5 8h-9z",
    "M0-5l5 5-5 5-5-5z",
    "M0 4.5l4.5-8h-9z",
    "M-4-1.5h2.5v-2.5h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5z",
)


def image(ident: str, title: str, desc: str, height: float, body: str, data: str = "") -> Markup:
    """The whole picture, with the title and the description that a screen reader speaks."""
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-labelledby="{escape(ident)}-t {escape(ident)}-d"{data}>'
        f'<title id="{escape(ident)}-t">{escape(shown(title))}</title>'
        f'<desc id="{escape(ident)}-d">{escape(shown(desc))}</desc>{body}</svg>'
    )


def text(x: float, y: float, content: str, kind: str = "", limit: int = 0) -> str:
    """Text at a point; text longer than `limit` characters is cut off, and its tooltip is complete."""
    content = shown(content)
    short = shorten(content, limit) if limit else content
    tip = f"<title>{escape(content)}</title>" if short != content else ""
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.4g}" y="{y:.4g}"{css}>{tip}{escape(short)}</text>'


def shorten(content: str, limit: int) -> str:
    """The text in at most `limit` characters."""
    return content if len(content) <= limit else content[: limit - 1] + "…"


def style(index: int) -> str:
    """The classes of the line with an index; -1 is the ensemble.

    The seventh line has the colour of the first, with another dash.
    """
    return "ce d0" if index < 0 else f"c{index % STYLES} d{(index + index // STYLES) % STYLES}"


def marker(x: float, y: float, index: int) -> str:
    """The marker of the line with an index, as `style`."""
    shape = MARKERS[0 if index < 0 else (index + index // STYLES) % STYLES]
    return f'<path class="m" transform="translate({x:.1f} {y:.1f})" d="{shape}"/>'


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions nearest to the wanted ones (least squares) that are at least `gap` apart.

    All positions lie within low..high if they fit there.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Minus the gaps before them, positions must not decrease: isotonic regression pools neighbours that do.
    groups: list[tuple[float, int]] = []
    for before, i in enumerate(order):
        mean, count = wanted[i] - before * gap, 1
        while groups and groups[-1][0] > mean:
            other, size = groups.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        groups.append((mean, count))
    top = max(low, high - (len(order) - 1) * gap)
    shifted = [min(max(mean, low), top) for mean, count in groups for _ in range(count)]
    positions = [0.0] * len(order)
    for before, (i, position) in enumerate(zip(order, shifted, strict=True)):
        positions[i] = position + before * gap
    return positions
