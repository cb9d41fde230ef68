"""The blocks of a page, figures and tables, and the templates that lay them out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kdcl_dist.utils.text import shown

__all__ = ["Figure", "Table", "environment", "render"]

NUMBER = re.compile(r"−?\d[\d,]*(\.\d+)?( ± \d+(\.\d+)?)?|–")


@dataclass(frozen=True)
class Figure:
    """A chart with its heading and its caption.

    Attributes:
        ident: the figure's id in the page.
        title: the heading.
        svg: the chart.
        caption: what the chart shows.
    """

    ident: str
    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Table:
    """A table that a reader can copy.

    Attributes:
        caption: what the table shows.
        heads: titles of the columns.
        rows: cells of each row; the first cell is the row's title.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it holds only numbers, intervals and dashes; such columns align right."""
        columns = [[row[i] for row in self.rows] for i in range(1, len(self.heads))]
        return [False, *(all(map(NUMBER.fullmatch, column)) for column in columns)]


@cache
def environment() -> Environment:
    """The templates of this package, which escape every text that is not `Markup`, and show it as `shown`."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    """A text as `shown`, line by line: a traceback has many."""
    plain = isinstance(value, str) and not isinstance(value, Markup)
    return "\n".join(map(shown, str(value).split("\n"))) if plain else value


def render(template: str, **context: object) -> str:
    """The HTML of a template with some context."""
    return environment().get_template(template).render(context)
