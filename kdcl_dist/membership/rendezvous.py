"""Where the cast meets: before the first step, and again after each failure.

Students write letters to the coordinator (ready to join; failed before they could), and the coordinator
calls those it has heard of into the next generation of the exchange group, or says that the run is over.
A letter is answered once: a process that was replaced, or that failed in a generation, writes a new one.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from kdcl_dist.config.rounds import Kind, Turn
from kdcl_dist.errors import CoordinatorLost, KdclError, StartupTimeout, from_dict
from kdcl_dist.membership.heartbeat import Watch
from kdcl_dist.membership.monitor import Board
from kdcl_dist.run.checkpoint import Manifest, Part

__all__ = ["Call", "Hello", "Meeting", "Ready", "RunEnded", "RunOver"]

POLL_S = 0.02


@dataclass(frozen=True)
class Hello:
    """What one student tells the cast before its first step."""

    name: str
    host: str
    pid: int
    device: str
    parameters: int
    classes: int
    plan: dict[str, int]
    data: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True)
class Call:
    """The coordinator's call into a generation.

    Attributes:
        number: the generation.
        start: the newest checkpoint, if there is one.
        at: the first turn.
        students: places of those that take part.
        restored: places of those that take up their state of `start`, or begin anew; the others go on
            with the one they have.
    """

    number: int
    start: Manifest | None
    at: Turn
    students: tuple[int, ...]
    restored: tuple[int, ...]


@dataclass
class Ready:
    """A student's letter that waits for its answer.

    Attributes:
        position: where it stands, None before its first generation.
        lost: how it lost the coordinator before this one, if it did.
    """

    ticket: str
    hello: Hello
    position: Turn | None
    lost: KdclError | None = None
    watch: Watch = field(default_factory=Watch)


class RunEnded(Exception):
    """The run has come to its end, or to a stop, without this student."""

    def __init__(self, finished: bool) -> None:
        super().__init__(finished)
        self.finished = finished


class RunOver(Exception):
    """The run has ended; `cause` is the failure that ended it."""

    def __init__(self, cause: KdclError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Meeting:
    """One process's part in the cast's meetings.

    Args:
        board: of the same process.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self._ready: dict[int, Ready] = {}
        self._failures: list[KdclError] = []
        self._unread: set[int] = set()
        self._counted = 0

    # -- students --------------------------------------------------------------------------------

    def join(
        self, hello: Hello, position: Turn | None, silence_s: float, lost: KdclError | None = None
    ) -> Call:
        """Say that this student is ready, and wait for the call of the coordinator, as long as that lives.

        Args:
            hello: of this student.
            position: the turn that it would take next, if it was in a generation.
            silence_s: seconds without a sign of life after which the coordinator is taken for dead.
            lost: how this student lost the coordinator before this one, if it did.

        Raises:
            RunEnded, RunOver: instead of a call.
            CoordinatorLost: it gives no sign of life, or its store is gone.
        """
        letter = {
            "hello": asdict(hello),
            "position": None if position is None else asdict(position),
            "lost": None if lost is None else lost.to_dict(),
        }
        ticket, watch, coordinator = self._write(letter), Watch(), len(self.board.names) - 1
        while not watch.is_stale(self.board.pulse_of(coordinator), silence_s):
            self._look_for_end()
            if self.board.has("call") and ticket in (call := self.board.read("call"))["tickets"]:
                return _call(call)
            time.sleep(POLL_S)
        raise CoordinatorLost(
            f"the coordinator gives no sign of life for {silence_s:g} s (limits.startup_s)", phase="start"
        )

    def report(self, error: KdclError) -> None:
        """Tell the coordinator that this student failed outside of a generation."""
        self._write({"failed": error.to_dict()})

    def _write(self, letter: dict[str, Any]) -> str:
        board, ticket = self.board, uuid.uuid4().hex
        number = board.call(board.store.add, "letters", 1)
        board.call(
            board.store.set,
            f"letter/{number}",
            json.dumps(letter | {"rank": board.rank, "ticket": ticket}),
        )
        return ticket

    def _look_for_end(self) -> None:
        if self.board.has("ended"):
            raise RunEnded(self.board.read("ended"))
        if self.board.has("over"):
            raise RunOver(from_dict(self.board.read("over")))

    # -- the coordinator -------------------------------------------------------------------------

    def assemble(self, ranks: Collection[int], limit_s: float) -> dict[int, Ready]:
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
                missing = [self.board.names[rank] for rank in sorted(set(ranks) - set(there))]
                raise _late(f"no word from {', '.join(missing)}", limit_s)
            time.sleep(POLL_S)
        return dict(sorted(there.items()))

    def waits_for(self, ranks: Collection[int]) -> bool:
        """Whether the students of some ranks are ready, and wait for their call."""
        return set(ranks) <= set(self._there())

    def _there(self) -> dict[int, Ready]:
        """Who is ready and lives. Who died while it waited for the others is waited for anew."""
        self._read_letters()
        found = {}
        for rank, ready in self._ready.items():
            pulse = self.board.pulse_of(rank)
            own = ready.hello.pid, ready.hello.host
            replaced = pulse is not None and (pulse["pid"], pulse["host"]) != own
            if not ready.watch.is_stale(pulse) and not replaced:
                found[rank] = ready
        return found

    def failures(self) -> list[KdclError]:
        """What students reported that failed outside of a generation, once."""
        found, self._failures = self._failures, []
        return found

    def call(self, call: Call, ranks: Collection[int]) -> None:
        """Call the students of some ranks, who are ready, into a generation."""
        tickets = [self._ready.pop(rank).ticket for rank in ranks]
        self._pin("call", asdict(call) | {"tickets": tickets})

    def close(self, finished: bool) -> None:
        """Tell students that were away that the run has ended without them."""
        self._pin("ended", finished)

    def end(self, cause: KdclError) -> None:
        """Tell all who are ready, now or later, that the run is over."""
        self._pin("over", cause.to_dict())

    def _read_letters(self) -> None:
        board = self.board
        count = int(board.call(board.store.add, "letters", 0))
        self._unread |= set(range(self._counted + 1, count + 1))
        self._counted = count
        # A number is drawn before its letter is written: one that died in between never writes it.
        for number in sorted(self._unread):
            if not board.has(f"letter/{number}"):
                continue
            self._unread.remove(number)
            letter = board.read(f"letter/{number}")
            if "failed" in letter:
                self._failures.append(from_dict(letter["failed"]))
                continue
            hello, position = Hello(**letter["hello"]), _turn(letter["position"])
            lost = None if letter["lost"] is None else from_dict(letter["lost"])
            self._ready[letter["rank"]] = Ready(letter["ticket"], hello, position, lost)

    def _pin(self, key: str, value: Any) -> None:
        self.board.call(self.board.store.set, key, json.dumps(value))


def _late(what: str, limit_s: float) -> StartupTimeout:
    return StartupTimeout(
        f"{what} after {limit_s:g} s (limits.startup_s): is there room for every student, and can the "
        "hosts reach each other?",
        phase="start",
    )


def _call(data: dict[str, Any]) -> Call:
    at = _turn(data["at"])
    assert at is not None
    return Call(
        data["number"], _manifest(data["start"]), at, tuple(data["students"]), tuple(data["restored"])
    )


def _turn(data: dict[str, Any] | None) -> Turn | None:
    return None if data is None else Turn(**data | {"kind": Kind(data["kind"])})


def _manifest(data: dict[str, Any] | None) -> Manifest | None:
    if data is None:
        return None
    parts = {name: Part(**part) for name, part in data["parts"].items()}
    return Manifest(data["step"], parts, data["format"])
