"""A comparison on the terminal: a line for each ended run, a bar for each current one, and the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from rich import progress
from rich.console import Console
from rich.text import Text

from kdcl_dist.compare.experiment import Job, Table
from kdcl_dist.compare.forecast import Forecast, duration
from kdcl_dist.compare.runs import Outcome
from kdcl_dist.errors import UserError
from kdcl_dist.run.events import Event, Started, Stepped, Warned
from kdcl_dist.utils.text import shown

__all__ = ["Progress"]


class Progress:
    """A context manager that shows jobs. `run_jobs` takes its `handle` and `handle_outcome`.

    Args:
        table: the experiment.
        jobs: those to train.
        at_once: how many train at the same time.
        done: the outcomes of runs of the table that were finished before, of any arm.
        before: how many of them are of the arms to train.
        console: takes the lines and bars.
    """

    def __init__(
        self,
        table: Table,
        jobs: Sequence[Job],
        at_once: int,
        console: Console,
        done: Sequence[Outcome] = (),
        before: int = 0,
    ) -> None:
        self.table, self.console = table, console
        self.jobs, self.ended, self.lock = len(jobs) + before, before, threading.Lock()
        self.forecast, self.told = Forecast(jobs, at_once, done), False
        self.tasks: dict[str, progress.TaskID] = {}
        self.steps: dict[str, int] = {}
        self.began: dict[str, float] = {}
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[unit]}"),
            _TimeLeft(),
            console=console,
            disable=not console.is_terminal,
        )
        self.all = self.bars.add_task("[bold]all", total=self.jobs, completed=before, unit="runs", left="")

    def __enter__(self) -> Progress:
        self._tell_size()
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(shown(text), highlight=False, markup=False, soft_wrap=True)

    def handle(self, job: Job, event: Event) -> None:
        """Show an event of a job."""
        with self.lock:
            now = time.monotonic()
            self.began.setdefault(job.name, now)
            if isinstance(event, Started):
                self._begin(job, event.step, event.epochs * event.steps_per_epoch, now)
            elif isinstance(event, Stepped) and job.name in self.tasks:
                self.bars.update(self.tasks[job.name], completed=event.step)
                self.forecast.step(job, event.step / self.steps[job.name], now)
                self.bars.update(self.all, left=self._left())
                self._tell_first(job, event.step)
            elif isinstance(event, Warned):
                self.print(f"{job.name}: warning: {event.text}")

    def handle_outcome(self, outcome: Outcome) -> None:
        """Show the results of a job, or its error."""
        name, metric = outcome.job.name, self.table.metric
        with self.lock:
            self.ended += 1
            self.forecast.end(outcome)
            left = self._left()
            if name in self.tasks:
                self.bars.remove_task(self.tasks.pop(name))
            self.bars.update(self.all, completed=self.ended, left=left)
        head = f"[{self.ended} of {self.jobs}] {name}"
        if outcome.results is None:
            error = outcome.error
            kind = "error" if isinstance(error, UserError) else type(error).__name__
            self.print(f"{head}: FAILED: {kind}: {error}")
            return
        factor, digits = (1, 4) if metric == "loss" else (100, 2)
        values = ", ".join(f"{who} {factor * v[metric]:.{digits}f}" for who, v in outcome.results.items())
        took = duration(time.monotonic() - self.began[name])
        rest = f"; {left} left" if left and self.ended < self.jobs else ""
        self.print(f"{head}: {metric} {values} ({took}{rest})")

    def _begin(self, job: Job, step: int, steps: int, now: float) -> None:
        """The steps of a job begin, for the first time or after a failure."""
        self.steps[job.name] = steps
        self.forecast.begin(job, step / steps, now, now - self.began[job.name])
        if job.name in self.tasks:
            self.bars.update(self.tasks[job.name], completed=step)
        else:
            self.tasks[job.name] = self.bars.add_task(job.name, total=steps, completed=step, unit="steps")

    def _tell_size(self) -> None:
        """What is to be done, and how long it takes if earlier runs tell."""
        before = f"{self.ended} of {self.jobs} runs are finished, " if self.ended else ""
        left = self._left()
        self.told = bool(left)
        time_left = f"{left}, as earlier runs took" if left else "how long is known after some steps"
        rest = self.jobs - self.ended
        self.print(f"{before}{rest} to train, {self.forecast.at_once} at once: {time_left}")

    def _tell_first(self, job: Job, step: int) -> None:
        """The first estimate, which needs some steps of a run."""
        if not self.told and (left := self._left()):
            self.told = True
            done = f"{step} of {self.steps[job.name]} steps of {job.name}"
            self.print(f"{left} for all {self.jobs - self.ended} runs, from the pace of {done}")

    def _left(self) -> str:
        """The time left in words; empty while it is not known."""
        left_s = self.forecast.left_s(time.monotonic())
        return "" if left_s is None else f"about {duration(left_s)}"


class _TimeLeft(progress.TimeRemainingColumn):
    """The time left: of a run by the bar, of all runs by the forecast."""

    def render(self, task: progress.Task) -> Text:
        """The text of the column."""
        if "left" in task.fields:
            return Text(task.fields["left"], style="progress.remaining")
        return super().render(task)
