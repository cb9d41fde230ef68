"""Trackers of a user's own, of every kind of trouble."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcl_dist.tracking.tracker import Point, Status, TrackedRun

#: Ends the waits of `Hangs`.
RELEASED = threading.Event()


class Notes:
    """Notes all that it is told, and raises what it shall."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.calls: list[str] = []
        self.points: list[Point] = []
        self.errors: list[BaseException] = []
        self.runs: list[TrackedRun] = []

    def start(self, run: TrackedRun) -> str | None:
        self.calls.append("start")
        self.runs.append(run)
        self._meet()
        return run.id or "its own id"

    def log(self, points: Sequence[Point]) -> None:
        self.calls.append(f"log {points[0].epoch}")
        self._meet()
        self.points += points

    def finish(self, status: Status) -> None:
        self.calls.append(status)
        self._meet()

    def _meet(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


class Fails(Notes):
    """Raises at every call, an error or an end of the process."""

    def _meet(self) -> None:
        if self.calls[-1].startswith("log"):
            raise SystemExit("no more")
        raise ConnectionError("http://user:secret-word@server is away")


class Hangs(Notes):
    """Does not come back from its first epoch until `RELEASED` is set."""

    def log(self, points: Sequence[Point]) -> None:
        RELEASED.wait(120)


class Environment(Notes):
    """Writes into the run folder what its process has in an environment variable, and how the run ended."""

    def finish(self, status: Status) -> None:
        text = f"{os.environ.get(self.arguments['variable'])} {status} {len(self.points)}"
        Path(str(self.runs[0].folder.local), "noted").write_text(text)


class Incomplete:
    """Lacks a method."""

    def start(self, run: TrackedRun) -> None:
        raise AssertionError

    def log(self, points: Sequence[Point]) -> None:
        raise AssertionError


def raises_when_made() -> Notes:
    """A function of a tracker that fails."""
    raise OSError("no such channel")


NUMBER = 3
