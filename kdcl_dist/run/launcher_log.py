"""The launcher's log: the lines that `kdcl train` prints without a terminal, also where it has one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kdcl_dist.run.events import Event, Warned
from kdcl_dist.run.lines import RunLines
from kdcl_dist.run.process_log import LAUNCHER, ProcessLog
from kdcl_dist.run.storage import Folder

__all__ = ["LauncherLog"]


class LauncherLog:
    """Keeps the events of a run as lines, and passes them on.

    Args:
        on_event: called with each event.
    """

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event, self._early = on_event, list[str]()
        self._lines = RunLines(self._write)
        self._log: ProcessLog | None = None

    def handle(self, event: Event) -> None:
        """Keep an event, and pass it on."""
        self._lines.handle(event)
        self._on_event(event)

    def warn(self, text: str) -> None:
        """Keep a warning, and pass it on."""
        self.handle(Warned(text))

    @contextmanager
    def kept(self, run: Folder) -> Iterator[None]:
        """Within the block the lines are written to a run folder, also those from before it."""
        self._log = ProcessLog(run, LAUNCHER)
        self._log.head(f"process {os.getpid()} starts")
        for line in self._early:
            self._write(line)
        try:
            with self._lines:
                yield
        finally:
            self._log.close()

    def _write(self, line: str) -> None:
        if self._log is None:
            self._early.append(line)
        else:
            self._log.lines([line])
