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
    with Progress(wanted, len(jobs), shown) as progress:
        progress.handle(jobs[0], Started(["a"], {}, epochs=2, steps_per_epoch=3, step=0))
        progress.handle(jobs[0], Warned("[b]slow[/b]"))
        clock.now += 12.6
        progress.handle_outcome(Outcome(jobs[0], {"a": {"top1": 0.5}, "ensemble": {"top1": 0.625}}))
        progress.handle(jobs[1], Stepped(1, {}))
        progress.handle_outcome(Outcome(jobs[1], error=StudentFailed("lost", student="a", step=3)))
        progress.handle_outcome(Outcome(jobs[2], error=RunFolderError("no such folder")))
    assert lines(shown) == [
        "plain-seed0: warning: [b]slow[/b]",
        "[1 of 4] plain-seed0: top1 a 50.00, ensemble 62.50 (13 s)",
        "[2 of 4] naive-seed0: FAILED: StudentFailed: student 'a', step 3: lost",
        "[3 of 4] plain-seed1: FAILED: error: no such folder",
    ]


def test_losses_are_nats(table: Path) -> None:
    (wanted, jobs), shown = opened(write_table(table, metric="loss")), console()
    with Progress(wanted, len(jobs), shown) as progress:
        progress.handle(jobs[0], Started(["a"], {}, epochs=2, steps_per_epoch=3, step=0))
        progress.handle_outcome(Outcome(jobs[0], {"a": {"loss": 0.51234}}))
    assert lines(shown) == ["[1 of 4] plain-seed0: loss a 0.5123 (0 s)"]


def test_a_bar_for_each_current_run(table: Path) -> None:
    wanted, jobs = opened(table)
    with Progress(wanted, len(jobs), console(terminal=True)) as progress:
        for job in jobs[:2]:
            progress.handle(job, Started(["a"], {}, epochs=2, steps_per_epoch=3, step=1))
        progress.handle(jobs[1], Stepped(5, {}))
        bars = {task.description: (task.completed, task.total) for task in progress.bars.tasks}
        assert bars == {"[bold]all": (0, 4), "plain-seed0": (1, 6), "naive-seed0": (5, 6)}
        progress.handle_outcome(Outcome(jobs[0], {}))
        bars = {task.description: (task.completed, task.total) for task in progress.bars.tasks}
        assert bars == {"[bold]all": (1, 4), "naive-seed0": (5, 6)}
