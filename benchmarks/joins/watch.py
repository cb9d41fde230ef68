"""What happens in the run, as its events tell it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kdcl_dist.run.events import CheckpointSaved, Event, Note, Started, Warned

__all__ = ["JoinsFailed", "Watch"]

#: Seconds after which a change that has not happened never will: no limit of the recipe is as long.
HANGS_S = 300.0


class JoinsFailed(Exception):
    """A change does not happen, or the run ends by itself."""


class Watch:
    """The state of the run.

    Attributes:
        placement: the process of each student of the latest generation, by name.
        generations: how many have begun.
        refused: names of students that could not join.
        met_s: seconds of pause of the others when a request was met; changed_s: when the cohort changed.
    """

    def __init__(self) -> None:
        self.placement: dict[str, int] = {}
        self.generations = 0
        self.refused = set[str]()
        self.met_s, self.changed_s = list[float](), list[float]()
        self._changed = threading.Condition()
        self._met_at: float | None = None
        self._saved: tuple[int, float] | None = None

    def handle(self, event: Event) -> None:
        """Note an event of the run."""
        with self._changed:
            match event:
                case Started():
                    self._begin(event)
                case CheckpointSaved():
                    self._saved = event.step, time.monotonic()
                case Warned() if " does not join: " in event.text:
                    self.refused.add(event.text.partition(" ")[0])
                case Note() if " after epoch " in event.text and self._met_at is None:
                    self._met_at = time.monotonic()
                case Note() if "failure.max_failures" in event.text:
                    self._met_at = self._saved = None
                case _:
                    pass
            self._changed.notify_all()

    def _begin(self, event: Started) -> None:
        """Note a generation; the others paused since the request was met, or since the epoch's checkpoint."""
        placement, now = (
            {name: int(place["pid"]) for name, place in event.placement.items()},
            time.monotonic(),
        )
        if self._met_at is not None:
            self.met_s.append(now - self._met_at)
        elif self._saved is not None and self._saved[0] == event.step and {*placement} != {*self.placement}:
            self.changed_s.append(now - self._saved[1])
        self.placement, self._met_at, self._saved = placement, None, None
        self.generations += 1

    def wait(self, happened: Callable[[], bool], what: str, stop: threading.Event) -> None:
        """Wait until something has happened, or the run is asked to stop.

        Raises:
            JoinsFailed: it does not.
        """
        deadline = time.monotonic() + HANGS_S
        with self._changed:
            while not happened() and not stop.is_set():
                if time.monotonic() > deadline:
                    raise JoinsFailed(f"{what} does not happen within {HANGS_S:g} s")
                self._changed.wait(0.1)
