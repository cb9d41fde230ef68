"""What a process writes becomes whole lines that a terminal cannot act on."""

from __future__ import annotations

import pytest

from kdcl_dist.launch.output_lines import LONGEST, Lines


def test_pieces_become_lines() -> None:
    lines = Lines()
    assert [lines.take(piece) for piece in (b"on", b"e\ntwo\nth", b"", b"ree")] == [
        [],
        ["one", "two"],
        [],
        [],
    ]
    assert lines.end() == ["three"]
    assert lines.end() == []


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"", ""),
        (b"a\tb  c", "a\tb  c"),
        ("größer 学生".encode(), "größer 学生"),
        (b"\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        (b"\x9b31m \xff", r"\x9b31m \xff"),
        ("\u202eback \u2028".encode(), r"\u202eback \u2028"),
        (b"by Windows\r", "by Windows"),
        (b" 10%\r 20%\r 30%", " 30%"),
        (b"a | 2026-11-30 end state=finished\r\x1b[2K2026", r"\x1b[2K2026"),
    ],
)
def test_only_printable_characters_and_tabs_are_left(written: bytes, shown: str) -> None:
    assert Lines().take(written + b"\n") == [shown]


def test_a_line_without_an_end_takes_no_more_memory_than_the_longest() -> None:
    lines = Lines()
    found = [line for _ in range(10) for line in lines.take(b"x" * LONGEST)]
    assert len(found) == 5
    assert all(len(line) <= LONGEST for line in found)
    assert len(lines._rest) <= LONGEST
