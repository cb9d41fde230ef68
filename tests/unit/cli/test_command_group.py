"""Errors of every command: one line each, and their exit code; and the levels of noise."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from kdcl_dist.cli.evaluate import Levels
from kdcl_dist.cli.group import kdcl, reports_errors
from kdcl_dist.cli.training_display import noise_table
from kdcl_dist.errors import KdclError, PreflightError, RecipeError, StudentFailed


def command(error: BaseException | None) -> Result:
    """A command that ends with an error."""

    @click.command()
    @reports_errors
    def failing() -> None:
        if error is not None:
            raise error

    return CliRunner().invoke(failing)


def test_a_mistake_of_the_user_is_one_line_and_code_2() -> None:
    found = command(RecipeError("epochs: must be positive", detail="Traceback ..."))
    assert (found.exit_code, found.output) == (2, "kdcl: error: epochs: must be positive\n")


def test_a_failed_run_has_its_traceback_its_kind_and_code_1() -> None:
    found = command(StudentFailed("lost", student="a", detail="Traceback ...\n"))
    assert (found.exit_code, found.output) == (1, "Traceback ...\nkdcl: StudentFailed: student 'a': lost\n")


def test_every_line_of_an_error_names_the_program() -> None:
    found = command(PreflightError("epochs: no\nbatch_size: no"))
    assert found.output == "kdcl: error: epochs: no\nkdcl: error: batch_size: no\n"


def test_an_interrupt_is_code_130() -> None:
    found = command(KeyboardInterrupt())
    assert (found.exit_code, found.output) == (130, "kdcl: interrupted\n")
    assert command(None).exit_code == 0


def test_an_error_of_the_program_is_not_hidden() -> None:
    assert isinstance(command(ZeroDivisionError()).exception, ZeroDivisionError)


def test_modules_beside_the_user_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    CliRunner().invoke(kdcl, ["report", "none"])
    assert sys.path[0] == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "levels"),
    [("0:0.15:0.05", [0, 0.05, 0.1, 0.15]), ("0.1", [0.1]), ("0:1:0.4", [0, 0.4, 0.8]), ("0", [0])],
)
def test_levels(text: str, levels: list[float]) -> None:
    assert Levels().convert(text, None, None) == levels


@pytest.mark.parametrize("text", ["a", "1:2", "2:1:1", "0:1:0", "-1", "0:inf:1", "nan", "0:1:0.1:2", ""])
def test_mistakes_in_levels(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"number|needed"):
        Levels().convert(text, None, None)


def test_noise_is_a_row_for_each_deviation() -> None:
    rows = [
        (deviation, repeat, student, {"loss": 1 + deviation + repeat})
        for deviation in (0.0, 0.5)
        for repeat in (0, 1)
        for student in ("a", "ensemble")
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(noise_table(rows, "noise"))
    assert isinstance(console.file, io.StringIO)
    cells = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    assert ["0", "1.5000", "1.5000"] in cells
    assert ["0.5", "2.0000", "2.0000"] in cells


@pytest.mark.parametrize("kind", [RecipeError, StudentFailed, PreflightError])
def test_an_error_is_one_printable_line_whatever_names_it_has(kind: type[KdclError]) -> None:
    name = "\x1b[31mred\u202e" + "x" * 100_000
    found = command(kind(f"{name}: no such class; give another"))
    (line,) = found.output.splitlines()
    assert line.isprintable()
    assert len(line) <= 2_000
    assert "\\x1b[31mred\\u202exxx" in line
    assert line.endswith("xxx: no such class; give another")


def test_a_name_begins_no_line_of_its_own() -> None:
    found = command(RecipeError("class 'a\nkdcl: error: all is well' is unknown"))
    assert found.output == "kdcl: error: class 'a\\nkdcl: error: all is well' is unknown\n"


def test_the_traceback_keeps_its_lines() -> None:
    found = command(StudentFailed("lost", detail="Traceback\n  File \x1b[0m\n"))
    assert found.output == "Traceback\n  File \\x1b[0m\nkdcl: StudentFailed: lost\n"
