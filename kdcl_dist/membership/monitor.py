"""The monitor: the heartbeat of each process, and the first failure of each generation.

The store that the coordinator hosts carries what is not part of a step. When one process dies, its peers
fail within milliseconds too; the monitor keeps the first cause apart from its consequences. Heartbeats
belong to the run. Failures belong to one generation of the exchange group, of which
`kdcl_dist.membership.rendezvous` announces one after the other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from kdcl_dist.errors import CoordinatorCutOff, CoordinatorLost, KdclError, from_dict, one_line
from kdcl_dist.membership.heartbeat import (
    HEARTBEAT_S,
    STALE_S,
    Heartbeat,
    HeartbeatThread,
    HeartbeatWatch,
    heartbeat_key,
)
from kdcl_dist.membership.store import POLL_S, Store, StoreClient

__all__ = ["COORDINATOR", "Monitor"]

COORDINATOR = "coordinator"


class Monitor:
    """One process's view of the store.

    Args:
        store: the store, already under a prefix of this run.
        names: the students in the order of the cohort.
        rank: of this process; len(names) is the coordinator's.
        generation: of the exchange group that failures belong to.
        is_gone: tells whether the process of a name and process id is known to be dead.

    Attributes:
        client: access to the store; its operations raise `CoordinatorLost` when the store cannot be reached.
        heartbeat: what this process does now.
        cause: the failure that broke this generation, as this process learned of it.
        lost: name and process id of those whose death or silence broke it; only the coordinator knows. None
            stands for the id of a process that has not reported it.
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
        self.names, self.rank = [*names, COORDINATOR], rank
        self.client = StoreClient(store, self._store_lost)
        self.heartbeat = Heartbeat()
        self._thread = HeartbeatThread(store, self.name, self.heartbeat)
        self.enter(generation)

    @property
    def name(self) -> str:
        """This process's name in the cohort."""
        return self.names[self.rank]

    @property
    def is_coordinator(self) -> bool:
        """Whether this process is the coordinator, which decides who is lost."""
        return self.rank == self.coordinator_rank

    @property
    def coordinator_rank(self) -> int:
        """The coordinator's rank, the last one."""
        return len(self.names) - 1

    def adopt(self, names: Sequence[str]) -> None:
        """Take the names of a cohort that has changed; this process keeps its own, maybe with another rank.

        Ranks of the generation before mean nothing then: another is entered next.
        """
        name, self.names = self.name, [*names, COORDINATOR]
        self.rank = self.names.index(name)

    def enter(
        self,
        generation: int,
        present: Sequence[int] | None = None,
        processes: Mapping[int, tuple[str, int]] | None = None,
        step: int | None = None,
    ) -> None:
        """Enter the next generation, in which nothing has failed yet.

        Args:
            generation: its number.
            present: ranks of the students that take part; None: all.
            processes: host and process id of each, where that is known; another process of the same rank
                has replaced it.
            step: at which it begins.
        """
        self.generation, self.processes = generation, processes or {}
        self.present = list(range(self.coordinator_rank)) if present is None else list(present)
        self.cause: KdclError | None = None
        self.lost: list[tuple[str, int | None]] = []
        # Observed with each heartbeat: so a heartbeat that stands still is known as soon as a limit ends.
        watched = self.present if self.is_coordinator else [self.coordinator_rank]
        self._thread.watch(generation, {rank: self.names[rank] for rank in watched})
        self.heartbeat.enter("start", step)
        if self._thread.is_running:  # at once: its last heartbeat is of the generation before
            self.client.call(self._thread.beat)

    def own_key(self, key: str) -> str:
        """A key of this generation."""
        return f"{self.generation}/{key}"

    # -- failures --------------------------------------------------------------------------------

    @property
    def failure_key(self) -> str:
        """The key of this generation's first failure."""
        return self.own_key("failure")

    def report(self, error: KdclError) -> KdclError:
        """Record a failure unless there is one already; returns the first failure of the generation."""
        try:
            error.at(host=self._host_of(error))
            first = from_dict(self.client.write_first(self.failure_key, error.to_dict()))
        except CoordinatorLost:  # no other process can know a failure before this one
            return error
        return error if first.to_dict() == error.to_dict() else first

    def _host_of(self, error: KdclError) -> str | None:
        """The host of the worker that failed, by its heartbeat."""
        name = COORDINATOR if isinstance(error, CoordinatorLost) else error.student or self.name
        heartbeat = self.heartbeat_of(self.names.index(name)) if name in self.names else None
        return None if heartbeat is None else str(heartbeat["host"])

    def failure(self) -> KdclError | None:
        """The first failure that was reported, if any."""
        return from_dict(self.client.read(self.failure_key)) if self.client.has(self.failure_key) else None

    def raise_failure(self) -> None:
        """Raise the first failure that was reported, if any."""
        if (error := self.failure()) is not None:
            self.cause = error
            raise error

    def coordinator_lost(self, how: str) -> CoordinatorLost:
        """The error of a coordinator that is lost, with the phase and host of its last heartbeat."""
        watch = self.watches.get(self.coordinator_rank)
        seen = (watch.last if watch is not None else None) or {}
        step = max(self.heartbeat.step, seen.get("step", 0))
        return CoordinatorLost(
            f"the coordinator {how}",
            step=step,
            phase=seen["phase"] if seen.get("step") == step else self.heartbeat.phase,
            host=seen.get("host"),
            detail=seen.get("stack"),
        )

    def check_own_store(self, host: str) -> None:
        """See that the coordinator reaches the store that its process hosts: else every generation fails.

        Args:
            host: of this process.

        Raises:
            CoordinatorCutOff: it does not.
        """
        try:
            self.client.has(self.failure_key)
        except CoordinatorLost as error:
            raise CoordinatorCutOff(error.message, host=host, phase="recovery") from error

    def _store_lost(self, error: Exception) -> CoordinatorLost:
        lost = self.coordinator_lost(f"died or cannot be reached ({one_line(error)})")
        self.cause = lost
        return lost

    # -- heartbeats ------------------------------------------------------------------------------

    @property
    def watches(self) -> Mapping[int, HeartbeatWatch]:
        """The observed heartbeats by rank: of the coordinator, or for the coordinator of all students."""
        return self._thread.watches

    @property
    def unanswered_since(self) -> float | None:
        """When the heartbeat that the store has not answered yet was sent, None without one."""
        return self._thread.unanswered_since

    def start_heartbeat(self, host: str, slow_s: float = 60.0) -> None:
        """Send this process's heartbeat from a thread until `close`.

        Args:
            host: this process's address.
            slow_s: seconds in one phase after which the heartbeat carries the stack of the loop.
        """
        self.client.write(self._departure_key(self.rank), False)  # a process before this one may have left
        self._thread.start(host, slow_s)

    def on_silence(self, after_s: float, act: Callable[[], object]) -> AbstractContextManager[None]:
        """Call `act` if a process that this one observes falls silent in the block; see `HeartbeatThread`.

        The coordinator hosts the store: if it falls silent, heartbeats have no answer.
        """
        thread = self._thread
        watch = thread.on_silence if self.is_coordinator else thread.on_no_answer
        return watch(max(after_s, STALE_S), act)

    def heartbeat_of(self, rank: int) -> dict[str, Any] | None:
        """The last heartbeat of a worker, if it sent one."""
        return self.heartbeat_by_name(self.names[rank])

    def heartbeat_by_name(self, name: str) -> dict[str, Any] | None:
        """As `heartbeat_of`, also of a process that does not belong to the cohort yet."""
        key = heartbeat_key(name)
        heartbeat: dict[str, Any] | None = self.client.read(key) if self.client.has(key) else None
        return heartbeat

    def close(self) -> None:
        """Stop the heartbeat."""
        self._thread.close(POLL_S if isinstance(self.cause, CoordinatorLost) else 2 * HEARTBEAT_S)

    # -- departure -------------------------------------------------------------------------------

    def report_departure(self) -> None:
        """Tell the coordinator that this student needs the store no more."""
        if isinstance(self.cause, CoordinatorLost):
            return
        with contextlib.suppress(CoordinatorLost):  # the coordinator left first, which does no harm
            self.client.write(self._departure_key(self.rank), True)

    def await_departures(self, limit_s: float) -> None:
        """Keep the store open until every student that lives has left, at most `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        watches = {rank: HeartbeatWatch() for rank in range(self.coordinator_rank)}
        while watches and time.monotonic() < deadline:
            watches = {
                rank: watch
                for rank, watch in watches.items()
                if not self._has_left(rank) and not watch.is_stale(self.heartbeat_of(rank))
            }
            time.sleep(POLL_S)

    def _has_left(self, rank: int) -> bool:
        key = self._departure_key(rank)
        return self.client.has(key) and bool(self.client.read(key))

    def _departure_key(self, rank: int) -> str:
        return f"departed/{self.names[rank]}"
