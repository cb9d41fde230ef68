"""Signs of life: what a process is doing, and whether its heartbeat, as others see it, stands still."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

__all__ = ["HEARTBEAT_S", "STALE_S", "Heartbeat", "HeartbeatWatch"]

HEARTBEAT_S = 1.0
#: A process whose heartbeat stands still for so long is taken for dead or stopped.
STALE_S = 4.0


@dataclass
class Heartbeat:
    """What a process is doing right now; written by its loop, sent by its heartbeat thread."""

    step: int = 0
    phase: str = "start"
    since: float = field(default_factory=time.monotonic)
    thread: int = field(default_factory=threading.get_ident)

    def enter(self, phase: str, step: int | None = None) -> None:
        """Note a new phase, and the step it belongs to."""
        self.phase, self.since = phase, time.monotonic()
        self.step = self.step if step is None else step

    def stack(self, after_s: float) -> str | None:
        """Where the loop's thread stands, if it has been in one phase for that long."""
        if time.monotonic() - self.since < after_s:
            return None
        frame = sys._current_frames().get(self.thread)
        return "".join(traceback.format_stack(frame)) if frame is not None else None


class HeartbeatWatch:
    """Whether a heartbeat stands still, by this process's own clock."""

    def __init__(self) -> None:
        self.last: dict[str, Any] | None = None
        self.since = time.monotonic()
        self.beats = 0

    def observe(self, heartbeat: dict[str, Any] | None) -> None:
        """Take note of what the heartbeat is now."""
        if heartbeat != self.last:
            self.last, self.since, self.beats = heartbeat, time.monotonic(), self.beats + 1

    def is_stale(self, heartbeat: dict[str, Any] | None, after_s: float = STALE_S) -> bool:
        """Whether this heartbeat has been the same for so many seconds."""
        self.observe(heartbeat)
        return time.monotonic() - self.since > after_s
