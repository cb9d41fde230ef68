"""Which awaited processes will not come: one that is stopped, or that takes too long.

A student that is dead is replaced by its launcher, which needs no report. One that hangs before it joins is
named here, so that the policy applies to it as to any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from kdcl_dist.errors import KdclError, StartupTimeout, StudentLost
from kdcl_dist.membership.heartbeat import HEARTBEAT_S, STALE_S, HeartbeatWatch
from kdcl_dist.membership.monitor import Monitor

__all__ = ["Arrivals"]


@dataclass
class _Wait:
    """The wait for one worker.

    Attributes:
        process: host and process id of the heartbeat when the wait began, None without one.
        began: when, by the monotonic clock.
        watch: of the heartbeat.
    """

    process: tuple[str, int] | None
    began: float
    watch: HeartbeatWatch = field(default_factory=HeartbeatWatch)


class Arrivals:
    """The coordinator's waits for workers that have not joined.

    Args:
        monitor: of the coordinator.
        is_started: tells whether the launcher has started a process for the worker of a name.
    """

    def __init__(self, monitor: Monitor, is_started: Callable[[str], bool]) -> None:
        self.monitor, self.is_started = monitor, is_started
        self.clear()

    def clear(self) -> None:
        """All waits begin anew."""
        self._waits: dict[int, _Wait] = {}
        self._looked = 0.0

    def failure(self, ranks: Collection[int], limit_s: float) -> KdclError | None:
        """The failure of those that will not come, if any; their waits begin anew with it.

        The monitor's `lost` are then their processes: the launcher ends them, and the next ones are awaited.

        Args:
            ranks: of all workers that are awaited now, and have not joined.
            limit_s: seconds that each has.
        """
        if time.monotonic() - self._looked < HEARTBEAT_S:
            return None
        self._looked = time.monotonic()
        beats = {rank: self.monitor.heartbeat_of(rank) for rank in sorted(ranks)}
        self._waits = {rank: self._wait(rank, beat) for rank, beat in beats.items()}
        silent_s = max(STALE_S, limit_s / 4)  # a start may hold up the heartbeat for a while
        silent = {r: b for r, b in beats.items() if self._is_stopped(r, b, silent_s)}
        late = {r: b for r, b in beats.items() if time.monotonic() - self._waits[r].began > limit_s}
        lost = silent or late
        for rank in lost:
            del self._waits[rank]
        if silent:
            how = f"gave no sign of life for {silent_s:g} s at the start"
            return self._failure(StudentLost, silent, how)
        return self._too_late(late, limit_s) if late else None

    def _wait(self, rank: int, heartbeat: dict[str, Any] | None) -> _Wait:
        """The wait for a worker; it begins anew when a process has replaced that of the first heartbeat."""
        wait, process = self._waits.get(rank), _process(heartbeat)
        if wait is None or (wait.process is not None and wait.process != process):
            return _Wait(process, time.monotonic())
        wait.process = process
        return wait

    def _is_stopped(self, rank: int, heartbeat: dict[str, Any] | None, silent_s: float) -> bool:
        stale = self._waits[rank].watch.is_stale(heartbeat, silent_s)
        return stale and self._lives(rank, heartbeat)

    def _lives(self, rank: int, heartbeat: dict[str, Any] | None) -> bool:
        """Whether a heartbeat is of a process that is not known to be dead."""
        is_gone, name = self.monitor.is_gone, self.monitor.names[rank]
        return heartbeat is not None and is_gone is not None and not is_gone(name, heartbeat["pid"])

    def _too_late(self, late: dict[int, dict[str, Any] | None], limit_s: float) -> KdclError:
        how = f"did not join within {limit_s:g} s (limits.startup_s): "
        names = [self.monitor.names[rank] for rank in late]
        missing = [name for name in names if not self.is_started(name)]
        if missing:
            return StartupTimeout(
                f"{', '.join(missing)} {how}does every student find free resources, and can the hosts reach "
                "each other?",
                phase="start",
            )
        return self._failure(StartupTimeout, late, f"{how}it hangs, or needs longer to start")

    def _failure(self, kind: type[KdclError], lost: dict[int, dict[str, Any] | None], how: str) -> KdclError:
        names = {rank: self.monitor.names[rank] for rank in lost}
        alive = {r: beat if self._lives(r, beat) else None for r, beat in lost.items()}
        self.monitor.lost = [(names[r], None if beat is None else beat["pid"]) for r, beat in alive.items()]
        first = min(lost)
        seen = alive[first] or {}
        return kind(
            f"{', '.join(names.values())} {how}",
            student=names[first],
            phase="start",
            host=seen.get("host"),
            detail=seen.get("stack"),
        )


def _process(heartbeat: dict[str, Any] | None) -> tuple[str, int] | None:
    return None if heartbeat is None else (heartbeat["host"], heartbeat["pid"])
