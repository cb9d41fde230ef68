"""Heartbeats: what a process does, sent once a second, and whether that of another process stands still."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kdcl_dist.membership.store import Store

__all__ = ["HEARTBEAT_S", "STALE_S", "Heartbeat", "HeartbeatThread", "HeartbeatWatch", "heartbeat_key"]

HEARTBEAT_S = 1.0
#: A process whose heartbeat stands still for so many seconds counts as dead or stopped.
STALE_S = 4.0


@dataclass
class Heartbeat:
    """What a process does now; its loop writes it, its heartbeat thread sends it."""

    step: int = 0
    phase: str = "start"
    since: float = field(default_factory=time.monotonic)
    thread: int = field(default_factory=threading.get_ident)

    def enter(self, phase: str, step: int | None = None) -> None:
        """Note a new phase, and the step that it belongs to."""
        self.phase, self.since = phase, time.monotonic()
        self.step = self.step if step is None else step

    def stack(self, after_s: float) -> str | None:
        """The stack of the loop's thread, if the loop has been in one phase for `after_s` seconds."""
        if time.monotonic() - self.since < after_s:
            return None
        frame = sys._current_frames().get(self.thread)  # the standard library's only way to another's stack
        return "".join(traceback.format_stack(frame)) if frame is not None else None


class HeartbeatWatch:
    """Whether the heartbeat of another process stands still, by the clock of this process.

    Args:
        clock: of this process, in seconds.

    Attributes:
        last: the last heartbeat that was observed.
        since: when it was first observed.
        beats: how many different heartbeats were observed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.last: dict[str, Any] | None = None
        self.since = clock()
        self.beats = 0

    def observe(self, heartbeat: dict[str, Any] | None) -> None:
        """Note the present heartbeat."""
        if heartbeat != self.last:
            self.last, self.since, self.beats = heartbeat, self._clock(), self.beats + 1

    def is_stale(self, heartbeat: dict[str, Any] | None, after_s: float = STALE_S) -> bool:
        """Note the present heartbeat; whether it has been the same for more than `after_s` seconds."""
        self.observe(heartbeat)
        return self.stands_still(after_s)

    def stands_still(self, after_s: float) -> bool:
        """Whether the last heartbeat was observed first more than `after_s` seconds ago."""
        return self._clock() - self.since > after_s


def heartbeat_key(name: str) -> str:
    """The store's key of the heartbeat of a process of a name; ranks change with the cohort."""
    return f"heartbeat/{name}"


class HeartbeatThread:
    """Sends the heartbeat of this process, and observes those of other processes.

    Args:
        store: of the run.
        name: of this process.
        heartbeat: what this process does.

    Attributes:
        generation: of the exchange group that this process takes part in; a part of its heartbeat.
        watches: of the observed processes, by rank.
        unanswered_since: when the heartbeat that the store has not answered yet was sent, None without one.
    """

    def __init__(self, store: Store, name: str, heartbeat: Heartbeat) -> None:
        self.store, self.name, self.heartbeat = store, name, heartbeat
        self.generation, self.watches = 0, dict[int, HeartbeatWatch]()
        self._watched: list[tuple[str, HeartbeatWatch]] = []
        self._alarm: tuple[float, Callable[[], object]] | None = None
        self._alarms = threading.Lock()
        self.unanswered_since: float | None = None
        self._counter = itertools.count()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._host, self._slow_s = "", 0.0

    @property
    def is_running(self) -> bool:
        """Whether the thread was started."""
        return self._thread is not None

    def watch(self, generation: int, names: Mapping[int, str]) -> None:
        """Send another generation, and observe other processes from now on; `names` are theirs by rank."""
        self.generation, self.watches = generation, {rank: HeartbeatWatch() for rank in names}
        self._watched = [(heartbeat_key(names[rank]), watch) for rank, watch in self.watches.items()]

    def start(self, host: str, slow_s: float) -> None:
        """Start the thread; arguments as of `kdcl_dist.membership.monitor.Monitor.start_heartbeat`."""
        self.heartbeat.thread = threading.get_ident()
        self._host, self._slow_s = host, slow_s
        self._thread = threading.Thread(target=self._run, name="kdcl-heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set() and self.beat():
            self._stop.wait(HEARTBEAT_S)

    def beat(self) -> bool:
        """Send a heartbeat; False when the store cannot be reached, which the loop finds out by itself."""
        now = self.heartbeat
        process = {"host": self._host, "pid": os.getpid(), "generation": self.generation}
        activity = {"step": now.step, "phase": now.phase, "stack": now.stack(self._slow_s)}
        beat = {"count": next(self._counter)} | process | activity
        self.unanswered_since = time.monotonic()
        try:
            self.store.set(heartbeat_key(self.name), json.dumps(beat))
            self._observe()
        except Exception:
            return False
        self.unanswered_since = None
        return True

    def _observe(self) -> None:
        watched = self._watched  # another generation brings others
        found = self.store.lookup([key for key, _ in watched])
        for (_, watch), heartbeat in zip(watched, found, strict=True):
            if heartbeat is not None:
                watch.observe(json.loads(heartbeat))

        with self._alarms:  # a block that has ended gets none
            if self._alarm is None:
                return
            after_s, act = self._alarm
            if any(watch.stands_still(after_s) for _, watch in watched):
                act()

    @contextmanager
    def on_silence(self, after_s: float, act: Callable[[], object]) -> Iterator[None]:
        """Call `act` in the thread, again and again, while an observed heartbeat stands still in the block.

        Args:
            after_s: seconds that a heartbeat stands still before.
            act: must not wait.
        """
        with self._alarms:
            self._alarm = after_s, act
        try:
            yield
        finally:
            with self._alarms:
                self._alarm = None

    @contextmanager
    def on_no_answer(self, after_s: float, act: Callable[[], object]) -> Iterator[None]:
        """Call `act` once, in a thread, if the store leaves one heartbeat unanswered in the block.

        The heartbeat's own thread waits for that answer, and so can't tell. The looks are counted, since by
        the clock a machine that was suspended would find every answer late.

        Args:
            after_s: seconds without an answer before.
            act: must not wait.
        """
        ended = threading.Event()

        def watch() -> None:
            """Count the looks at which the same heartbeat has no answer."""
            sent, looks = None, 0
            while not ended.wait(HEARTBEAT_S):
                before, sent = sent, self.unanswered_since
                looks = looks + 1 if sent is not None and sent == before else 0
                if looks * HEARTBEAT_S >= after_s:
                    act()
                    return

        watching = threading.Thread(target=watch, name="kdcl-silence", daemon=True)
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()

    def close(self, limit_s: float) -> None:
        """Stop the thread; after `limit_s` seconds leave it alone with the store that does not answer."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=limit_s)
