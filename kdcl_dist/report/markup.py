"""Pieces of HTML. Every text is escaped here, so that a recipe's names are never read as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["beside", "details", "facts", "figure", "figures", "note", "section", "table", "verbatim"]

NUMBER = re.compile(r"−?\d[\d,]*(\.\d+)?( ± \d+(\.\d+)?)?|–")


def note(text: str, kind: str = "note") -> str:
    """A paragraph: kind "note" is plain, "warn" stands out."""
    return f'<p class="{kind}">{escape(text)}</p>'


def section(title: str, *parts: str) -> str:
    """A section with its heading; nothing at all when its parts are empty."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def details(summary: str, body: str, kind: str = "") -> str:
    """A part that is closed until asked for."""
    return f'<details class="{kind}"><summary>{escape(summary)}</summary>\n{body}\n</details>'


def facts(items: Mapping[str, str]) -> str:
    """Terms and what they are; empty values are left out."""
    pairs = (
        f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>"
        for term, value in items.items()
        if value
    )
    return f"<dl>{''.join(pairs)}</dl>"


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that can be copied; the first cell of a row is its head, columns of numbers stand right."""
    body = list(rows)
    kinds = [' class="n"' if _is_numeric([row[i] for row in body]) else "" for i in range(len(heads))]
    kinds[0] = ""
    top = "".join(f'<th scope="col"{k}>{escape(head)}</th>' for head, k in zip(heads, kinds, strict=True))
    lines = "\n".join(f"<tr>{_cells(row, kinds)}</tr>" for row in body)
    # A <caption> would be as narrow as its table.
    return (
        f'<figure class="table"><figcaption>{escape(caption)}</figcaption><div class="scroll"><table>'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div></figure>"
    )


def figure(ident: str, title: str, svg: str, caption: str) -> str:
    """A picture with its heading, and a caption that says what is seen."""
    return (
        f'<figure id="{escape(ident)}"><h3>{escape(title)}</h3>\n{svg}\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def figures(parts: Iterable[str]) -> str:
    """Figures side by side, as many as fit; nothing when there is none."""
    body = "\n".join(part for part in parts if part)
    return f'<div class="figures">\n{body}\n</div>' if body else ""


def verbatim(text: str) -> str:
    """Text with its line breaks, such as a traceback."""
    return f"<pre>{escape(text)}</pre>"


def beside(*parts: str) -> str:
    """Parts beside each other where there is room."""
    return f'<div class="beside">\n{chr(10).join(parts)}\n</div>'


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    head, *cells = row
    body = (f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, kinds[1:], strict=True))
    return f'<th scope="row">{escape(head)}</th>' + "".join(body)


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether these are numbers, with or without an interval, or dashes for want of one."""
    return all(NUMBER.fullmatch(cell) for cell in cells)
