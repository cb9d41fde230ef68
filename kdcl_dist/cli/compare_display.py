"""A comparison on the terminal: a line for each ended run, and a bar for each current run."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich import progress
from rich.console import Console

from kdcl_dist.compare.experiment import Job, Table
from kdcl_dist.compare.runs import Outcome
from kdcl_dist.errors import UserError
from kdcl_dist.run.events import Event, Started, Stepped, Warned
from kdcl_dist.utils.text import shown

__all__ = ["Progress"]


class Progress:
    """A context manager that shows jobs. `run_jobs` takes its `handle` and `handle_outcome`."""

    def __init__(self, table: Table, jobs: int, console: Console) -> None:
        self.table, self.jobs, self.console = table, jobs, console
        self.ended, self.lock = 0, threading.Lock()
        self.tasks: dict[str, progress.TaskID] = {}
        self.began: dict[str, float] = {}
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[unit]}"),
            progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.all = self.bars.add_task("[bold]all", total=jobs, unit="runs")

    def __enter__(self) -> Progress:
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
            self.began.setdefault(job.name, time.monotonic())
            if isinstance(event, Started):
                total = event.epochs * event.steps_per_epoch
                self.tasks[job.name] = self.bars.add_task(
                    job.name, total=total, completed=event.step, unit="steps"
                )
            elif isinstance(event, Stepped) and job.name in self.tasks:
                self.bars.update(self.tasks[job.name], completed=event.step)
            elif isinstance(event, Warned):
                self.print(f"{job.name}: warning: {event.text}")

    def handle_outcome(self, outcome: Outcome) -> None:
        """Show the results of a job, or its error."""
        name, metric = outcome.job.name, self.table.metric
        self.ended += 1
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))
        self.bars.update(self.all, completed=self.ended)
        head = f"[{self.ended} of {self.jobs}] {name}"
        if outcome.results is None:
            error = outcome.error
            kind = "error" if isinstance(error, UserError) else type(error).__name__
            self.print(f"{head}: FAILED: {kind}: {error}")
            return
        factor, digits = (1, 4) if metric == "loss" else (100, 2)
        shown = ", ".join(f"{who} {factor * v[metric]:.{digits}f}" for who, v in outcome.results.items())
        self.print(f"{head}: {metric} {shown} ({time.monotonic() - self.began[name]:.0f} s)")
