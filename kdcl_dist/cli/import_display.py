"""The progress of an import: a bar with rate and remaining time on a terminal, else a line every 10 s."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["ImportProgress"]

#: Seconds between lines where there is no terminal.
LINE_S = 10.0


class ImportProgress:
    """Shows the progress of an import; a context manager. Importers call `update`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self.task_name = ""
        self.task = TaskID(0)
        self.started = self.shown = 0.0

    def __enter__(self) -> ImportProgress:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Show the progress.

        Args:
            what: the current task.
            done, total: number of images.
        """
        now = time.monotonic()
        if what != self.task_name:
            self.task_name, self.started, self.shown = what, now, now
            self.task = self.bar.add_task(what, total=total)
        if self.console.is_terminal:
            self.bar.update(self.task, completed=done)
        elif now - self.shown >= LINE_S or done == total:
            self.shown = now
            rate = done / max(now - self.started, 1e-3)
            left = f", {(total - done) / rate:,.0f} s left" if done < total else ""
            self.console.print(
                f"{what}: {done:,} of {total:,} images, {rate:,.0f} a second{left}", soft_wrap=True
            )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Images a second."""
        return Text(f"{task.speed or 0:,.0f} a second")
