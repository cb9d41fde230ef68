"""A running cohort on the terminal: a bar, and a row for each student."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kdcl_dist.run.events import CheckpointSaved, EpochEnded, Event, Note, Started, Stepped, Values, Warned
from kdcl_dist.run.lines import RunLines, placement_text
from kdcl_dist.run.metrics import ENSEMBLE
from kdcl_dist.utils.text import NAME, shown

__all__ = ["Display", "display", "noise_table", "results_table"]


def display(console: Console) -> Display | RunLines:
    """A context manager that shows a run's events: lines where the console is no terminal.

    `kdcl_dist.train` takes its `handle`.
    """
    return Display(console) if console.is_terminal else RunLines(lambda line: show(console, line))


def show(console: Console, line: str) -> None:
    """Print a line as it is, and at once: a log is read while it grows."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.file.flush()


class Display:
    """Shows a run's events on a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps, {task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task("starting", total=None, speed="")
        self.started: Started | None = None
        self.train: Values = {}
        self.test: Values = {}
        self.tested = "test"
        self.began = time.monotonic()
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def __enter__(self) -> Display:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def handle(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Note):
            self._line(event.text)
        elif isinstance(event, Warned):
            self._line(f"warning: {event.text}")
        elif isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, EpochEnded):
            self._end_epoch(event)
        elif isinstance(event, CheckpointSaved) and self.started is not None:
            self.progress.update(self.task, completed=event.step)

    def _start(self, event: Started) -> None:
        self.started, self.began = event, time.monotonic()
        total = event.epochs * event.steps_per_epoch
        self.progress.reset(self.task, total=total, completed=event.step, description="epoch 1")
        for name, where in event.placement.items():
            self._line(placement_text(name, where))

    def _step(self, event: Stepped) -> None:
        assert self.started is not None
        self.train = event.values
        done, seconds = event.step - self.started.step, time.monotonic() - self.began
        epoch = (event.step - 1) // self.started.steps_per_epoch + 1
        self.progress.update(
            self.task,
            completed=event.step,
            description=f"epoch {epoch}",
            speed=f"{done / max(seconds, 1e-9):.1f} a second",
        )

    def _end_epoch(self, event: EpochEnded) -> None:
        self.train = event.train
        if event.val or event.test:
            self.test, self.tested = (event.val, "validation") if event.val else (event.test, "test")
        assert self.started is not None
        self.progress.update(self.task, completed=(event.epoch + 1) * self.started.steps_per_epoch)

    def _line(self, text: str) -> None:
        show(self.console, shown(text))

    def _render(self) -> Group:
        if self.started is None:
            return Group(self.progress)
        table = Table(box=None, pad_edge=False)
        tested = f"{self.tested} top-1 %"
        for title in ("student", "loss", "distillation", "train top-1 %", tested, "step ms", "waits"):
            table.add_column(title, justify="left" if title == "student" else "right")
        for name in dict.fromkeys((*self.started.students, ENSEMBLE, *self.test)):
            table.add_row(name, *self._cells(self.train.get(name, {}), self.test.get(name, {})))
        return Group(self.progress, table)

    def _cells(self, train: dict[str, float], test: dict[str, float]) -> list[str]:
        step_s = train.get("step_s", 0.0)
        share = train.get("wait_s", 0.0) / step_s if step_s else None
        return [
            _number(train.get("loss"), 1, 3),
            _number(train.get("distillation_loss"), 1, 3),
            _number(train.get("top1"), 100, 2),
            _number(test.get("top1"), 100, 2),
            _number(step_s or None, 1000, 1),
            "" if share is None else f"{share:.0%}",
        ]


def _number(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}"


def results_table(results: Values, title: str) -> Table:
    """The test results as a table: a row for each student, and one for the ensemble; best epochs below."""
    table = Table(title=title, title_justify="left")
    with_epochs = any("epoch" in values for values in results.values())
    for name in ("student", "loss", "top-1 %", "top-5 %", *(["epoch"] if with_epochs else [])):
        table.add_column(name, justify="left" if name == "student" else "right")
    for name, values in results.items():
        figures = [f"{values['loss']:.4f}", f"{100 * values['top1']:.2f}", f"{100 * values['top5']:.2f}"]
        if with_epochs:
            figures.append(_number(values.get("epoch"), 1, 0))
        table.add_row(Text(shown(name, NAME)), *figures)  # a finished run's names are those of its record
    return table


def noise_table(rows: list[tuple[float, int, str, dict[str, float]]], title: str) -> Table:
    """Mean losses under noise: a row for each deviation, a column for each student.

    Args:
        rows: (deviation, repeat, student, values).
        title: title of the table.
    """
    students = list(dict.fromkeys(student for _, _, student, _ in rows))
    table = Table(title=title, title_justify="left")
    for name in ("deviation", *students):
        table.add_column(name, justify="right")
    for deviation in dict.fromkeys(row[0] for row in rows):
        cells = []
        for student in students:
            losses = [values["loss"] for d, _, name, values in rows if (d, name) == (deviation, student)]
            cells.append(f"{sum(losses) / len(losses):.4f}")
        table.add_row(f"{deviation:g}", *cells)
    return table
