"""The blocks of a page: tables and figures, and the escape of every text."""

from __future__ import annotations

from html import unescape

import jinja2
import pytest

from kdcl_dist.report.blocks import Figure, Table, environment, render
from kdcl_dist.report.lines import Line, line_chart


def block(macro: str, shown: Figure | Table) -> str:
    """A block's HTML."""
    source = f'{{% from "blocks.html" import {macro} %}}{{{{ {macro}(shown) }}}}'
    return environment().from_string(source).render(shown=shown)


def test_columns_of_numbers_align_right() -> None:
    html = block("table", Table("", ["a", "b", "c"], [["x", "1.5 ± 0.2", "10.0.0.1"], ["y", "–", "7"]]))
    assert html.count('class="n"') == 3


def test_every_text_of_a_block_is_escaped() -> None:
    attack = "<script>\"'&</script>"
    table = block("table", Table(attack, [attack] * 2, [[attack, attack]]))
    assert unescape(table).count(attack) == 5
    assert "<script>" not in table
    svg = line_chart(attack, attack, attack, [Line(attack, 0, [(1.0, 2.0)])])
    figure = block("figure", Figure(attack, attack, svg, attack))
    assert "<script>" not in figure
    assert "<svg" in figure
    # An SVG that is not marked as one is text like any other.
    assert "<svg" not in block("figure", Figure("x", "x", str(svg), "x"))  # type: ignore[arg-type]


def test_no_figures_are_no_block() -> None:
    source = '{% from "blocks.html" import figures %}{{ figures([]) }}'
    assert environment().from_string(source).render().strip() == ""


def test_a_column_of_text_and_numbers_is_text() -> None:
    shown = Table("", ["run", "a", "b", "c"], [["1", "1,234", "−0.5", "1"], ["2", "5", "1.5 ± 0.25", "one"]])
    assert shown.numeric == [False, True, True, False]


def test_a_missing_part_of_a_page_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("single.html", title="x")
