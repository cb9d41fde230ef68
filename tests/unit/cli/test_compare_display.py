"""A comparison on the terminal: lines for ended runs, bars for current ones."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from cohorts import MakeRecipe
from experiments import make_table, write_table
from rich.console import Console

from kdcl_dist.cli import compare_display
from kdcl_dist.cli.compare_display import Progress
from kdcl_dist.compare.experiment import Job, Table, jobs_of, load_table
from kdcl_dist.compare.runs import Outcome
from kdcl_dist.errors import RunFolderError, StudentFailed
from kdcl_dist.run.events import Started, Stepped, Warned


@pytest.fixture
def table(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    return make_table(make_recipe, tmp_path)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the display, which stands still."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(compare_display, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def opened(table: Path) -> tuple[Table, list[Job]]:
    wanted = load_table(table)
    return wanted, jobs_of(wanted, table.parent)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def lines(shown: Console) -> list[str]:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue().splitlines()


def test_a_line_for_each_ended_run(table: Path, clock: SimpleNamespace) -> None:
    (wanted, jobs), shown = opened(table), console()
    with Progress(wanted, jobs, 1, shown) as progress:
        progress.handle(jobs[0], Started(["a"], {}, epochs=2, steps_per_epoch=3, step=0))
        progress.handle(jobs[0], Warned("[b]slow[/b]"))
        clock.now += 12.6
        values = {"a": {"top1": 0.5}, "ensemble": {"top1": 0.625}}
        progress.handle_outcome(Outcome(jobs[0], values, seconds=13.0))
        progress.handle(jobs[1], Stepped(1, {}))
        progress.handle_outcome(Outcome(jobs[1], error=StudentFailed("lost", student="a", step=3)))
        progress.handle_outcome(Outcome(jobs[2], error=RunFolderError("no such folder")))
    assert lines(shown) == [
        "4 to train, 1 at once: how long is known after some steps",
        "plain-seed0: warning: [b]slow[/b]",
        "[1 of 4] plain-seed0: top1 a 50.00, ensemble 62.50 (13 s; about 39 s left)",
        "[2 of 4] naive-seed0: FAILED: StudentFailed: student 'a', step 3: lost",
        "[3 of 4] plain-seed1: FAILED: error: no such folder",
    ]


def test_losses_are_nats(table: Path) -> None:
    (wanted, jobs), shown = opened(write_table(table, metric="loss")), console()
    with Progress(wanted, jobs, 1, shown) as progress:
        progress.handle(jobs[0], Started(["a"], {}, epochs=2, steps_per_epoch=3, step=0))
        progress.handle_outcome(Outcome(jobs[0], {"a": {"loss": 0.51234}}))
    assert lines(shown)[1:] == ["[1 of 4] plain-seed0: loss a 0.5123 (0 s)"]


def test_the_first_steps_tell_how_long_the_table_takes(table: Path, clock: SimpleNamespace) -> None:
    (wanted, jobs), shown = opened(table), console()
    with Progress(wanted, jobs, 2, shown) as progress:
        progress.handle(jobs[0], Started(["a"], {}, epochs=2, steps_per_epoch=50, step=0))
        for step in (1, 10, 20):
            clock.now += 3 * step
            progress.handle(jobs[0], Stepped(step, {}))
    assert lines(shown) == [
        "4 to train, 2 at once: how long is known after some steps",
        "about 11 min for all 4 runs, from the pace of 10 of 100 steps of plain-seed0",
    ]


def test_earlier_runs_tell_how_long_the_rest_takes(table: Path) -> None:
    (wanted, jobs), shown = opened(table), console(terminal=True)
    done = [Outcome(job, {"a": {"top1": 0.5}}, seconds=300.0) for job in jobs[:2]]
    with Progress(wanted, jobs[2:], 1, shown, done, 2) as progress:
        progress.handle(jobs[2], Started(["a"], {}, epochs=2, steps_per_epoch=3, step=0))
        progress.handle(jobs[2], Stepped(3, {}))
        (total,) = (task for task in progress.bars.tasks if task.description == "[bold]all")
        assert (total.completed, total.total, total.fields["left"]) == (2, 4, "about 5 min")
        progress.handle_outcome(Outcome(jobs[2], {"a": {"top1": 0.5}}, seconds=1.0))
    text = " ".join(lines(shown))
    assert "2 of 4 runs are finished, 2 to train, 1 at once: about 10 min, as earlier runs took" in text
    assert "[3 of 4] plain-seed1: top1 a 50.00 (0 s; about 5 min left)" in text


def test_a_bar_for_each_current_run(table: Path) -> None:
    wanted, jobs = opened(table)
    with Progress(wanted, jobs, 1, console(terminal=True)) as progress:
        for job in jobs[:2]:
            progress.handle(job, Started(["a"], {}, epochs=2, steps_per_epoch=3, step=1))
        progress.handle(jobs[1], Stepped(5, {}))
        bars = {task.description: (task.completed, task.total) for task in progress.bars.tasks}
        assert bars == {"[bold]all": (0, 4), "plain-seed0": (1, 6), "naive-seed0": (5, 6)}
        progress.handle_outcome(Outcome(jobs[0], {}))
        bars = {task.description: (task.completed, task.total) for task in progress.bars.tasks}
        assert bars == {"[bold]all": (1, 4), "naive-seed0": (5, 6)}
