"""What the cohort waits for while nothing moves: an event now and then, from a thread of the coordinator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from kdcl_dist.membership.heartbeat import STALE_S
from kdcl_dist.membership.monitor import COORDINATOR, Monitor
from kdcl_dist.run.events import Event, Waiting

__all__ = ["WaitReport"]

#: Seconds in one phase from which on the cohort counts as waiting, and between two looks.
AFTER_S, LOOK_S = 10.0, 5.0
#: Phases in which a student waits for others; in every other phase the others may wait for it.
WAITING = ("gather", "broadcast")
#: Phases in which the coordinator itself works.
OWN_WORK = ("ensemble", "record", "checkpoint")


class WaitReport:
    """Emits `Waiting` while the coordinator stays in one phase.

    Args:
        monitor: of the coordinator.
        missing: gives the ranks that have not joined while a generation forms.
        emit: called with each event, from a thread.
        clock: that of heartbeats, in seconds.
    """

    def __init__(
        self,
        monitor: Monitor,
        missing: Callable[[], Collection[int]],
        emit: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monitor, self._missing, self._emit, self._clock = monitor, missing, emit, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kdcl-waits", daemon=True)

    def __enter__(self) -> WaitReport:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(LOOK_S)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Emit an event if the coordinator has been in its phase for `AFTER_S` seconds."""
        now = self._monitor.heartbeat
        phase, step, seconds = now.phase, now.step, self._clock() - now.since
        if seconds >= AFTER_S:
            self._emit(Waiting(phase, step, seconds, self._late(phase, step)))

    def _late(self, phase: str, step: int) -> tuple[str, ...]:
        if phase in OWN_WORK:
            return (COORDINATOR,)
        missing = sorted(self._missing())
        watches = {} if missing else dict(self._monitor.watches)
        late = [
            rank
            for rank, watch in watches.items()
            if watch.last is not None
            and (self._clock() - watch.since > STALE_S or _is_behind(watch.last, step))
        ]
        return tuple(self._monitor.names[rank] for rank in missing or late)


def _is_behind(heartbeat: dict[str, object], step: int) -> bool:
    """Whether a student still works on a step: one that loads the next step's batch has sent its message."""
    found = heartbeat["step"]
    return heartbeat["phase"] not in WAITING and isinstance(found, int) and found <= step
