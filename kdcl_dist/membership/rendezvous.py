"""Where the cohort meets: before the first step, and again after each failure.

Students write requests to the coordinator (ready to join; failed before they could), and the coordinator
calls those it has heard of into the next generation of the exchange group, or says that the run is over.
A request is answered once: a process that was replaced, or that failed in a generation, writes a new one.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.errors import CoordinatorLost, KdclError, StartupTimeout, from_dict
from kdcl_dist.membership.heartbeat import HeartbeatWatch
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.run.checkpoint import Manifest, Part

__all__ = ["GenerationSpec", "PendingJoin", "Rendezvous", "RunCompleted", "RunFailed", "WorkerInfo"]

POLL_S = 0.02


@dataclass(frozen=True)
class WorkerInfo:
    """What one student tells the cohort before its first step."""

    name: str
    host: str
    pid: int
    device: str
    parameters: int
    classes: int
    schedule: dict[str, int]
    data: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True)
class GenerationSpec:
    """The coordinator's call into a generation.

    Attributes:
        number: the generation.
        start: the latest checkpoint, if there is one.
        at: the first round.
        students: places of those that take part.
        restored: places of those that take up their state of `start`, or begin anew; the others go on
            with the one they have.
    """

    number: int
    start: Manifest | None
    at: Round
    students: tuple[int, ...]
    restored: tuple[int, ...]


@dataclass
class PendingJoin:
    """A student's request that waits for its answer.

    Attributes:
        position: where it stands, None before its first generation.
        lost: how it lost the coordinator before this one, if it did.
    """

    ticket: str
    info: WorkerInfo
    position: Round | None
    lost: KdclError | None = None
    watch: HeartbeatWatch = field(default_factory=HeartbeatWatch)


class RunCompleted(Exception):
    """The run has come to its end, or to a stop, without this student."""

    def __init__(self, finished: bool) -> None:
        super().__init__(finished)
        self.finished = finished


class RunFailed(Exception):
    """The run has ended; `cause` is the failure that ended it."""

    def __init__(self, cause: KdclError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Rendezvous:
    """One process's part in the cohort's meetings.

    Args:
        monitor: of the same process.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self._ready: dict[int, PendingJoin] = {}
        self._failures: list[KdclError] = []
        self._unread: set[int] = set()
        self._counted = 0

    # -- students --------------------------------------------------------------------------------

    def join(
        self, info: WorkerInfo, position: Round | None, silence_s: float, lost: KdclError | None = None
    ) -> GenerationSpec:
        """Say that this student is ready, and wait for the call of the coordinator, as long as that lives.

        Args:
            info: of this student.
            position: the round that it would take next, if it was in a generation.
            silence_s: seconds without a sign of life after which the coordinator is taken for dead.
            lost: how this student lost the coordinator before this one, if it did.

        Raises:
            RunCompleted, RunFailed: instead of a call.
            CoordinatorLost: it gives no sign of life, or its store is gone.
        """
        request = {
            "info": asdict(info),
            "position": None if position is None else asdict(position),
            "lost": None if lost is None else lost.to_dict(),
        }
        ticket, watch, coordinator = self._write(request), HeartbeatWatch(), len(self.monitor.names) - 1
        while not watch.is_stale(self.monitor.heartbeat_of(coordinator), silence_s):
            self._look_for_end()
            if self.monitor.has("call") and ticket in (call := self.monitor.read("call"))["tickets"]:
                return _call(call)
            time.sleep(POLL_S)
        raise CoordinatorLost(
            f"the coordinator gives no sign of life for {silence_s:g} s (limits.startup_s)", phase="start"
        )

    def report(self, error: KdclError) -> None:
        """Tell the coordinator that this student failed outside of a generation."""
        self._write({"failed": error.to_dict()})

    def _write(self, request: dict[str, Any]) -> str:
        monitor, ticket = self.monitor, uuid.uuid4().hex
        number = monitor.call(monitor.store.add, "requests", 1)
        monitor.call(
            monitor.store.set,
            f"request/{number}",
            json.dumps(request | {"rank": monitor.rank, "ticket": ticket}),
        )
        return ticket

    def _look_for_end(self) -> None:
        if self.monitor.has("ended"):
            raise RunCompleted(self.monitor.read("ended"))
        if self.monitor.has("over"):
            raise RunFailed(from_dict(self.monitor.read("over")))

    # -- the coordinator -------------------------------------------------------------------------

    def assemble(self, ranks: Collection[int], limit_s: float) -> dict[int, PendingJoin]:
        """Wait until the students of some ranks are ready; returns all that are, by rank.

        Raises:
            StartupTimeout: naming the students that are not after `limit_s` seconds.
            KdclError: the first failure that a student reports meanwhile.
        """
        deadline = time.monotonic() + limit_s
        while not set(ranks) <= set(there := self._there()):
            if self._failures:
                raise self._failures.pop(0)
            if time.monotonic() > deadline:
                missing = [self.monitor.names[rank] for rank in sorted(set(ranks) - set(there))]
                raise _late(f"no word from {', '.join(missing)}", limit_s)
            time.sleep(POLL_S)
        return dict(sorted(there.items()))

    def waits_for(self, ranks: Collection[int]) -> bool:
        """Whether the students of some ranks are ready, and wait for their call."""
        return set(ranks) <= set(self._there())

    def _there(self) -> dict[int, PendingJoin]:
        """Who is ready and lives. Who died while it waited for the others is waited for anew."""
        self._read_requests()
        found = {}
        for rank, ready in self._ready.items():
            heartbeat = self.monitor.heartbeat_of(rank)
            own = ready.info.pid, ready.info.host
            replaced = heartbeat is not None and (heartbeat["pid"], heartbeat["host"]) != own
            if not ready.watch.is_stale(heartbeat) and not replaced:
                found[rank] = ready
        return found

    def failures(self) -> list[KdclError]:
        """What students reported that failed outside of a generation, once."""
        found, self._failures = self._failures, []
        return found

    def call(self, call: GenerationSpec, ranks: Collection[int]) -> None:
        """Call the students of some ranks, who are ready, into a generation."""
        tickets = [self._ready.pop(rank).ticket for rank in ranks]
        self._pin("call", asdict(call) | {"tickets": tickets})

    def close(self, finished: bool) -> None:
        """Tell students that were away that the run has ended without them."""
        self._pin("ended", finished)

    def end(self, cause: KdclError) -> None:
        """Tell all who are ready, now or later, that the run is over."""
        self._pin("over", cause.to_dict())

    def _read_requests(self) -> None:
        monitor = self.monitor
        count = int(monitor.call(monitor.store.add, "requests", 0))
        self._unread |= set(range(self._counted + 1, count + 1))
        self._counted = count
        # A number is drawn before its request is written: one that died in between never writes it.
        for number in sorted(self._unread):
            if not monitor.has(f"request/{number}"):
                continue
            self._unread.remove(number)
            request = monitor.read(f"request/{number}")
            if "failed" in request:
                self._failures.append(from_dict(request["failed"]))
                continue
            info, position = WorkerInfo(**request["info"]), _round(request["position"])
            lost = None if request["lost"] is None else from_dict(request["lost"])
            self._ready[request["rank"]] = PendingJoin(request["ticket"], info, position, lost)

    def _pin(self, key: str, value: Any) -> None:
        self.monitor.call(self.monitor.store.set, key, json.dumps(value))


def _late(what: str, limit_s: float) -> StartupTimeout:
    return StartupTimeout(
        f"{what} after {limit_s:g} s (limits.startup_s): is there room for every student, and can the "
        "hosts reach each other?",
        phase="start",
    )


def _call(data: dict[str, Any]) -> GenerationSpec:
    at = _round(data["at"])
    assert at is not None
    return GenerationSpec(
        data["number"], _manifest(data["start"]), at, tuple(data["students"]), tuple(data["restored"])
    )


def _round(data: dict[str, Any] | None) -> Round | None:
    return None if data is None else Round(**data | {"kind": Kind(data["kind"])})


def _manifest(data: dict[str, Any] | None) -> Manifest | None:
    if data is None:
        return None
    parts = {name: Part(**part) for name, part in data["parts"].items()}
    return Manifest(data["step"], parts, data["format"])
