"""The monitor: a heartbeat of each process, and the first failure of each generation for all to read.

A key-value store that the coordinator hosts carries what is not part of a step. When one process dies
its peers fail too, within milliseconds of each other; the monitor keeps the first cause apart from what
followed from it. Pulses belong to the run, failures to one generation of its exchange group
(`kdcl_dist.membership.rendezvous` says how one follows the other).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdcl_dist.errors import CoordinatorLost, KdclError, from_dict, one_line
from kdcl_dist.membership.heartbeat import HEARTBEAT_S, Heartbeat, HeartbeatWatch
from kdcl_dist.membership.store import Store, call_with_timeout

__all__ = ["COORDINATOR", "Monitor"]

COORDINATOR = "coordinator"
POLL_S = 0.02
#: Within which the coordinator's store answers, however busy it is.
ANSWER_S = 10.0


class Monitor:
    """One process's view of the store.

    Args:
        store: the store, already under a prefix of this run.
        names: the students in the order of the cohort.
        rank: place in the cohort; len(names) is the coordinator.
        generation: of the exchange group whose failures are meant.
        is_gone: tells whether the process of a name and process id is known to be dead.

    Attributes:
        cause: the failure that broke this generation, as this process learned it from the others.
        lost: name and process id of those whose death or silence broke it; known to the coordinator.
        watches: for a student the coordinator's heartbeat, for the coordinator those of all students.
        asked: when the heartbeat that the store has not answered yet was sent.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        rank: int,
        generation: int = 0,
        is_gone: Callable[[str, int], bool] | None = None,
    ) -> None:
        self.store, self.is_gone = store, is_gone
        self.names = [*names, COORDINATOR]
        self.rank = rank
        self.heartbeat = Heartbeat()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._beats = itertools.count()
        self.asked: float | None = None
        self.enter(generation)

    @property
    def name(self) -> str:
        """This process's name in the cohort."""
        return self.names[self.rank]

    @property
    def is_coordinator(self) -> bool:
        """Whether this process is the coordinator, which judges who is lost."""
        return self.rank == self.last

    @property
    def last(self) -> int:
        """The coordinator's rank."""
        return len(self.names) - 1

    def enter(
        self,
        generation: int,
        present: Sequence[int] | None = None,
        processes: Mapping[int, tuple[str, int]] | None = None,
        step: int | None = None,
    ) -> None:
        """Round to the next generation, in which nothing has failed yet.

        Args:
            generation: its number.
            present: ranks of the students that take part; None: all.
            processes: host and process id of each, where that is known; another one in a student's place
                has followed it.
            step: at which it begins.
        """
        self.generation, self.processes = generation, processes or {}
        self.present = list(range(len(self.names) - 1)) if present is None else list(present)
        self.cause: KdclError | None = None
        self.lost: list[tuple[str, int]] = []
        # Looked at with each heartbeat, so that whose stands still is known as soon as a limit ends.
        self.watches = {
            rank: HeartbeatWatch() for rank in (self.present if self.is_coordinator else [self.last])
        }
        self.heartbeat.enter("start", step)
        if self._thread is not None:  # at once: where it was in the one before says nothing of this one
            self.call(self._beat)

    # -- failures --------------------------------------------------------------------------------

    def report(self, error: KdclError) -> KdclError:
        """Pin up a failure unless there is one already; returns the first failure of the generation."""
        try:
            error.at(host=self._host_of(error))
            first = self.call(self.store.compare_set, self.own("failure"), "", json.dumps(error.to_dict()))
        except CoordinatorLost:  # this process's own error is all there is
            return error
        found = from_dict(json.loads(first))
        return error if found.to_dict() == error.to_dict() else found

    def _host_of(self, error: KdclError) -> str | None:
        """Where the worker is whose failure it is, by its heartbeat."""
        name = COORDINATOR if isinstance(error, CoordinatorLost) else error.student or self.name
        heartbeat = self.heartbeat_of(self.names.index(name)) if name in self.names else None
        return None if heartbeat is None else str(heartbeat["host"])

    def failure(self) -> KdclError | None:
        """The first failure that was reported, if any."""
        key = self.own("failure")
        return from_dict(self.read(key)) if self.has(key) else None

    def raise_failure(self) -> None:
        """Raise the first failure that was reported, if any."""
        if (error := self.failure()) is not None:
            self.cause = error
            raise error

    def coordinator_lost(self, how: str) -> CoordinatorLost:
        """That the coordinator is lost, with the place of its last heartbeat."""
        watch = self.watches.get(self.last)
        seen = (watch.last if watch is not None else None) or {}
        step = max(self.heartbeat.step, seen.get("step", 0))
        return CoordinatorLost(
            f"the coordinator {how}",
            step=step,
            phase=seen["phase"] if seen.get("step") == step else self.heartbeat.phase,
            host=seen.get("host"),
            detail=seen.get("stack"),
        )

    # -- heartbeat -----------------------------------------------------------------------------------

    def start_heartbeat(self, host: str, slow_s: float = 60.0) -> None:
        """Send this process's heartbeat from a thread until `close`.

        Args:
            host: this process's address.
            slow_s: seconds in one phase after which the stack of the loop is sent with it.
        """
        self.heartbeat.thread = threading.get_ident()
        self._host, self._slow_s = host, slow_s
        self.call(self.store.set, f"bye/{self.rank}", "")  # takes back that of a process before this one

        def beat() -> None:
            while not self._stop.is_set() and self._beat():
                self._stop.wait(HEARTBEAT_S)

        self._thread = threading.Thread(target=beat, name="kdcl-heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> bool:
        """Send a heartbeat; False when the store is gone, which the loop will find out by itself."""
        now, own = self.heartbeat, {"host": self._host, "pid": os.getpid(), "generation": self.generation}
        place = {"step": now.step, "phase": now.phase, "stack": now.stack(self._slow_s)}
        self.asked = time.monotonic()
        try:
            self.store.set(f"heartbeat/{self.rank}", json.dumps({"count": next(self._beats)} | own | place))
            self._observe()
        except Exception:
            return False
        self.asked = None
        return True

    def _observe(self) -> None:
        for rank, seen in self.watches.items():
            if self.store.check([key := f"heartbeat/{rank}"]):
                seen.observe(json.loads(self.store.get(key)))

    def close(self) -> None:
        """Stop the heartbeat; one that the store does not take is left alone."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=POLL_S if isinstance(self.cause, CoordinatorLost) else 2 * HEARTBEAT_S)

    def say_bye(self) -> None:
        """Tell the coordinator that this student needs the store no more."""
        if isinstance(self.cause, CoordinatorLost):
            return
        with contextlib.suppress(CoordinatorLost):  # it has gone first, which does no harm
            self.call(self.store.set, f"bye/{self.rank}", "1")

    def await_byes(self, limit_s: float) -> None:
        """Keep the store open until every student that lives has left, at most `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        watch = {rank: HeartbeatWatch() for rank in range(len(self.names) - 1)}
        while watch and time.monotonic() < deadline:
            watch = {
                rank: seen
                for rank, seen in watch.items()
                if not self._has_left(rank) and not seen.is_stale(self.heartbeat_of(rank))
            }
            time.sleep(POLL_S)

    def _has_left(self, rank: int) -> bool:
        key = f"bye/{rank}"
        return self.has(key) and self.store.get(key) == b"1"

    def heartbeat_of(self, rank: int) -> dict[str, Any] | None:
        """The last heartbeat of a worker, if it sent one."""
        key = f"heartbeat/{rank}"
        heartbeat: dict[str, Any] | None = self.read(key) if self.has(key) else None
        return heartbeat

    # -- the store -------------------------------------------------------------------------------

    def has(self, *keys: str) -> bool:
        """Whether all keys exist; raises `CoordinatorLost` when the store cannot be reached, as do all."""
        return bool(self.call(self.store.check, list(keys)))

    def read(self, key: str) -> Any:
        """The JSON value of a key that exists."""
        return json.loads(self.call(self.store.get, key))

    def call(self, operation: Callable[..., Any], *arguments: Any, answer_s: float = ANSWER_S) -> Any:
        """An operation of the store, which answers at once or never: its process does nothing else there."""
        try:
            return call_with_timeout(answer_s, lambda: operation(*arguments))
        except Exception as error:
            self.cause = self.coordinator_lost(f"died or cannot be reached ({one_line(error)})")
            raise self.cause from error

    def own(self, key: str) -> str:
        """A key of this generation."""
        return f"{self.generation}/{key}"
