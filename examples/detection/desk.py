"""A desk at which the workers and the driver of a run leave word for each other."""

from __future__ import annotations

from dataclasses import dataclass

import ray

__all__ = ["Desk", "Heard"]


@dataclass(frozen=True)
class Heard:
    """What the workers said since the driver asked last: lines, and of each work the latest (done, total)."""

    lines: list[str]
    progress: dict[str, tuple[int, int]]


@ray.remote
class Desk:
    """An actor; it imports next to nothing, so that it is there at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.progress: dict[str, tuple[int, int]] = {}
        self.stopping = False

    def say(self, line: str) -> None:
        """Leave a line for the driver."""
        self.lines.append(line)

    def tell(self, what: str, done: int, total: int) -> None:
        """Leave word of how far the work is."""
        self.progress[what] = done, total

    def heard(self) -> Heard:
        """What was left since the last call."""
        heard = Heard(self.lines, self.progress)
        self.lines, self.progress = [], {}
        return heard

    def stop(self) -> None:
        """Ask for a checkpoint and an end after the current step."""
        self.stopping = True

    def asked(self) -> bool:
        """Whether that was asked for."""
        return self.stopping
