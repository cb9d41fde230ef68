"""The rendezvous of the cohort: before the first step, and again after each failure.

Students write requests to the coordinator: ready to join, or failed before that. The coordinator announces
the next generation of the exchange group to the students that are ready, or the end of the run.
A request is answered once. A process that replaces another, or that failed in a generation, writes a new one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kdcl_dist.config.rounds import Round
from kdcl_dist.errors import CoordinatorLost, KdclError, from_dict
from kdcl_dist.membership.arrivals import Arrivals
from kdcl_dist.membership.generation_spec import GenerationSpec, round_of
from kdcl_dist.membership.heartbeat import HeartbeatWatch
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.store import POLL_S

__all__ = ["Joins", "PendingJoin", "Rendezvous", "RunCompleted", "RunFailed", "WorkerInfo"]

#: Keys of the store: the number of requests, the latest generation, and the two ends of a run. Besides, each
#: request and each announcement of a generation has a key of its own, which wakes those who wait for it.
REQUESTS, GENERATION, COMPLETED, FAILED = "requests", "generation", "completed", "failed"


@dataclass(frozen=True)
class WorkerInfo:
    """What one student's worker reports to the cohort before its first step.

    `peak_memory` is that of its rehearsal, in bytes. `cores` counts those of its host that it may use;
    `class_names` are of the data, if files of logits need them. `took_over`: when its spare worker did, UTC.
    """

    name: str
    host: str
    pid: int
    device: str
    parameters: int
    classes: int
    schedule: dict[str, Any]
    data: dict[str, str]
    versions: dict[str, str]
    peak_memory: int = 0
    cores: int = 0
    class_names: list[str] = field(default_factory=list)
    took_over: str = ""


@dataclass
class PendingJoin:
    """A student's join request that has no answer yet.

    Attributes:
        ticket: identifies the request.
        info: of the worker.
        position: the round that it would take next, None before its first generation.
        lost: how it lost the previous coordinator, if it did.
        rank: that it has in its recipe.
        watch: of its heartbeat.
    """

    ticket: str
    info: WorkerInfo
    position: Round | None
    lost: KdclError | None = None
    rank: int = 0
    watch: HeartbeatWatch = field(default_factory=HeartbeatWatch)


#: Join requests by rank.
Joins = dict[int, PendingJoin]


class RunCompleted(Exception):
    """The run has completed, or was stopped, without this student."""

    def __init__(self, finished: bool) -> None:
        super().__init__(finished)
        self.finished = finished


class RunFailed(Exception):
    """The run has ended; `cause` is the failure that ended it."""

    def __init__(self, cause: KdclError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Rendezvous:
    """One process's part in the rendezvous.

    Args:
        monitor: of the same process.
        is_started: tells the coordinator whether the launcher has started a process for a worker.

    Attributes:
        missing: the ranks for which `assemble` waits at present.
    """

    def __init__(self, monitor: Monitor, is_started: Callable[[str], bool] = lambda name: False) -> None:
        self.monitor, self.client = monitor, monitor.client
        self._arrivals = Arrivals(monitor, is_started)
        self.missing = frozenset[int]()
        self._joins: dict[str, PendingJoin] = {}
        self._failures: list[KdclError] = []
        self._unread: set[int] = set()
        self._counted = self._calls = 0

    # -- students --------------------------------------------------------------------------------

    def join(
        self,
        info: WorkerInfo,
        position: Round | None,
        silence_s: float,
        lost: KdclError | None = None,
        is_over: Callable[[GenerationSpec], bool] = lambda spec: False,
    ) -> GenerationSpec:
        """Report that this student is ready; wait for its next generation while the coordinator lives.

        Args:
            info: of this student's worker.
            position: the round that it would take next, if it was in a generation.
            silence_s: seconds without a heartbeat after which the coordinator counts as dead.
            lost: how this student lost the previous coordinator, if it did.
            is_over: whether this student has left the cohort by a generation that others are called to.

        Raises:
            RunCompleted, RunFailed: the run has ended, for this student also where others go on without it.
            CoordinatorLost: the coordinator is silent, or its store cannot be reached.
        """
        request = {
            "info": asdict(info),
            "position": None if position is None else asdict(position),
            "lost": None if lost is None else lost.to_dict(),
        }
        ticket, watch = self._write(request), HeartbeatWatch()
        while not watch.is_stale(self.monitor.heartbeat_of(self.monitor.coordinator_rank), silence_s):
            self._raise_end()
            if self.client.has(GENERATION):
                announced = self.client.read(GENERATION)
                spec, self._calls = GenerationSpec.of(announced), announced["calls"]
                if ticket in announced["tickets"]:
                    return spec
                if is_over(spec):
                    raise RunCompleted(True)
            self.client.has(f"call/{self._calls + 1}", wait_s=POLL_S)
        raise CoordinatorLost(
            f"the coordinator gives no sign of life for {silence_s:g} s (limits.startup_s)", phase="start"
        )

    def report(self, error: KdclError) -> None:
        """Report to the coordinator that this student failed outside of a generation."""
        self._write({"failed": error.to_dict()})

    def _write(self, request: dict[str, Any]) -> str:
        """Write a request; returns its ticket."""
        ticket, number = uuid.uuid4().hex, self.client.count(REQUESTS, 1)
        sender = {"name": self.monitor.name, "rank": self.monitor.rank}
        self.client.write(f"request/{number}", request | sender | {"ticket": ticket})
        return ticket

    def cohort(self, number: int) -> dict[str, Any]:
        """The fields of the recipe with this number, which the coordinator has published."""
        fields: dict[str, Any] = self.client.read(f"cohort/{number}")
        return fields

    def _raise_end(self) -> None:
        if self.client.has(COMPLETED):
            raise RunCompleted(self.client.read(COMPLETED))
        if self.client.has(FAILED):
            raise RunFailed(from_dict(self.client.read(FAILED)))

    # -- the coordinator -------------------------------------------------------------------------

    def assemble(self, ranks: Collection[int], limit_s: float) -> Joins:
        """Wait until the workers of some ranks are ready; returns all that are, by rank.

        Raises:
            StartupTimeout: after `limit_s` seconds; it names the workers that are not ready.
            StudentLost: the process of one that is not ready is stopped.
            KdclError: the first failure that a student reports meanwhile.
        """
        self._arrivals.clear()
        while self._note_missing(ranks, ready := self.ready()) or self._forget_dead(ready):
            if self._failures:
                raise self._failures.pop(0)
            if (error := self._arrivals.failure(self.missing, limit_s)) is not None:
                raise error
            self.client.has(f"request/{min(self._unread, default=self._counted + 1)}", wait_s=POLL_S)
        self._arrivals.clear()
        return dict(sorted(ready.items()))

    def _forget_dead(self, ready: Collection[int]) -> bool:
        """Forget the requests of processes that are known to be dead, before a heartbeat shows it."""
        names = [self.monitor.names[rank] for rank in ready]
        dead = [name for name in names if self._is_gone(name)]
        for name in dead:
            del self._joins[name]
        return bool(dead)

    def _is_gone(self, name: str) -> bool:
        is_gone = self.monitor.is_gone
        return is_gone is not None and is_gone(name, self._joins[name].info.pid)

    def _note_missing(self, ranks: Collection[int], ready: Collection[int]) -> bool:
        self.missing = frozenset(ranks) - frozenset(ready)
        return bool(self.missing)

    def overdue(self, ranks: Collection[int], limit_s: float) -> KdclError | None:
        """The failure of workers that are away and will not come; None as long as they may come."""
        return self._arrivals.failure(set(ranks) - set(self.ready()), limit_s)

    def ready(self) -> Joins:
        """The join requests of the workers that live, by rank.

        A worker that died after its request does not count; the process that replaces it writes its own.
        """
        self._read_requests()
        workers = self.monitor.names[: self.monitor.coordinator_rank]
        return {rank: self._joins[name] for rank, name in enumerate(workers) if self._is_ready(name)}

    def are_ready(self, ranks: Collection[int]) -> bool:
        """Whether the workers of some ranks are ready, and wait for the next generation."""
        return set(ranks) <= set(self.ready())

    def wait_to_join(self, ranks: Mapping[str, int]) -> list[WorkerInfo]:
        """What processes that do not belong to the cohort yet report, once all are ready; empty before.

        Args:
            ranks: by their names those that they will have; a process of another rank is another student's.
        """
        self._read_requests()
        ready = all(self._is_ready(name) and self._comes(name, rank) for name, rank in ranks.items())
        return [self._joins[name].info for name in ranks] if ready else []

    def _comes(self, name: str, rank: int) -> bool:
        return self._joins[name].rank == rank and not self._is_gone(name)

    def _is_ready(self, name: str) -> bool:
        pending = self._joins.get(name)
        return pending is not None and self._lives(name, pending)

    def _lives(self, name: str, pending: PendingJoin) -> bool:
        heartbeat = self.monitor.heartbeat_by_name(name)
        own = pending.info.pid, pending.info.host
        is_replaced = heartbeat is not None and (heartbeat["pid"], heartbeat["host"]) != own
        return not pending.watch.is_stale(heartbeat) and not is_replaced

    def failures(self) -> list[KdclError]:
        """The failures that students reported outside of a generation, each once."""
        found, self._failures = self._failures, []
        return found

    def publish(self, number: int, fields: dict[str, Any]) -> None:
        """Publish a recipe, of which later generations are; its members take it over from their own.

        Args:
            number: of the recipe; each change of the cohort has the next.
            fields: of the recipe.
        """
        self.client.write(f"cohort/{number}", fields)

    def announce(self, spec: GenerationSpec, ranks: Collection[int]) -> None:
        """Announce a generation to the workers of some ranks, which are ready."""
        tickets = [self._joins.pop(self.monitor.names[rank]).ticket for rank in ranks]
        self._calls += 1
        self.client.write(GENERATION, asdict(spec) | {"tickets": tickets, "calls": self._calls})
        self.client.write(f"call/{self._calls}", True)

    def complete(self, finished: bool) -> None:
        """Announce to students that are away that the run has completed, or was stopped, without them."""
        self.client.write(COMPLETED, finished)

    def fail(self, cause: KdclError) -> None:
        """Announce to all students that are ready, now or later, that the run has failed."""
        self.client.write(FAILED, cause.to_dict())

    def _read_requests(self) -> None:
        count = self.client.count(REQUESTS)
        self._unread |= set(range(self._counted + 1, count + 1))
        self._counted = count
        # A student counts its request before it writes it; one that died in between never writes it.
        for number in sorted(self._unread):
            if self.client.has(f"request/{number}"):
                self._unread.remove(number)
                self._handle(self.client.read(f"request/{number}"))

    def _handle(self, request: dict[str, Any]) -> None:
        if "failed" in request:
            if request["name"] in self.monitor.names:  # of others, who were to join, the launcher tells
                self._failures.append(from_dict(request["failed"]))
            return
        info, position = WorkerInfo(**request["info"]), round_of(request["position"])
        lost = None if request["lost"] is None else from_dict(request["lost"])
        self._joins[request["name"]] = PendingJoin(request["ticket"], info, position, lost, request["rank"])
