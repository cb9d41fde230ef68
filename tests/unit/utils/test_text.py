"""Text from elsewhere as it is shown."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcl_dist.utils.text import csv_cell, shown

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too: file names of other encodings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("Katze, 猫, قط, 🐈", "Katze, 猫, قط, 🐈"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x1b]0;title\x07\x1b[31m", "\\x1b]0;title\\x07\\x1b[31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x85\u2028\u2029\x9b", "\\x85\\u2028\\u2029\\x9b"),
        ("\udc80\0", "\\udc80\\x00"),
        ("C:\\n", "C:\\n"),
        ("", ""),
    ],
)
def test_what_is_not_printable_is_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected


@given(ANY_TEXT, st.integers(20, 60))
def test_any_text_is_one_printable_line_within_the_limit(text: str, limit: int) -> None:
    found = shown(text, limit)
    assert found.isprintable()
    assert len(found) <= limit
    found.encode()  # no lone surrogate is left
    assert shown(found, limit) == found
    if text.isprintable() and len(text) <= limit:
        assert found == text


def test_the_middle_of_a_long_text_is_left_out() -> None:
    found = shown(f"data.train: {'x' * 100_000}: give another name")
    assert len(found) <= 2_000
    assert found.startswith("data.train: xxx")
    assert found.endswith("xxx: give another name")
    assert "x ... x" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "cat"),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-1", "-1"),
        ("-1.5e-3", "-1.5e-3"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "\\t=1"),
        ("two\nlines", "two\\nlines"),
    ],
)
def test_cells_are_no_formulas_and_numbers_stay_numbers(text: str, expected: str) -> None:
    assert csv_cell(text) == expected


@given(ANY_TEXT, ANY_TEXT)
def test_a_row_of_cells_is_one_line_that_reads_back(first: str, second: str) -> None:
    cells = [csv_cell(first), csv_cell(second)]
    csv.writer(file := io.StringIO(), lineterminator="\n").writerow(cells)
    assert file.getvalue().count("\n") == 1
    assert next(csv.reader(io.StringIO(file.getvalue()))) == cells
    assert not any(cell[:1] in "=@\t\r" for cell in cells if cell)
