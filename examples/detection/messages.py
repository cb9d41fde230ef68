"""Messages between the workers and the driver of a run."""

from __future__ import annotations

from dataclasses import dataclass

import ray

__all__ = ["Messages", "Unread"]


@dataclass(frozen=True)
class Unread:
    """The workers' messages since the driver's last call: lines, and (done, total) of each task."""

    lines: list[str]
    progress: dict[str, tuple[int, int]]


@ray.remote
class Messages:
    """An actor that keeps messages; it imports little, so that it starts at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.progress: dict[str, tuple[int, int]] = {}
        self.stopping = False

    def add_line(self, line: str) -> None:
        """Keep a line for the driver."""
        self.lines.append(line)

    def add_progress(self, what: str, done: int, total: int) -> None:
        """Keep the latest progress of a task."""
        self.progress[what] = done, total

    def take(self) -> Unread:
        """The messages since the last call."""
        unread = Unread(self.lines, self.progress)
        self.lines, self.progress = [], {}
        return unread

    def stop(self) -> None:
        """Ask for a checkpoint and an end after the current step."""
        self.stopping = True

    def asked(self) -> bool:
        """Whether the driver has asked for an end."""
        return self.stopping
