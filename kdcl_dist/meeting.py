"""Where the cast meets: before the first step, and again after each failure.

Students write letters to the coordinator (ready to join; failed before they could), and the coordinator
calls those it has heard of into the next generation of the exchange group, or says that the run is over.
A letter is answered once: a process that was replaced, or that failed in a generation, writes a new one.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

from kdcl_dist.board import Board, Watch
from kdcl_dist.checkpoint import Manifest, Part
from kdcl_dist.errors import KdclError, StartupTimeout, from_dict

__all__ = ["Call", "Hello", "Meeting", "RunOver"]

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
    """The coordinator's call into a generation: its number, and the checkpoint that all go back to."""

    number: int
    start: Manifest | None


@dataclass
class _Ready:
    """A letter that waits for its answer, and its sender's pulse."""

    ticket: str
    hello: Hello
    watch: Watch = field(default_factory=Watch)


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
        self._ready: dict[int, _Ready] = {}
        self._unread: set[int] = set()
        self._counted = 0

    # -- students --------------------------------------------------------------------------------

    def join(self, hello: Hello, limit_s: float) -> Call:
        """Say that this student is ready, and wait for the call of the coordinator.

        Raises:
            RunOver: instead of a call.
            StartupTimeout: there is none within `limit_s` seconds.
            CoordinatorLost: its store is gone.
        """
        ticket = self._write({"hello": asdict(hello)})
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            self._look_for_end()
            if self.board.has("call"):
                call = self.board.read("call")
                if ticket in call["tickets"]:
                    return Call(call["number"], _manifest(call["start"]))
            time.sleep(POLL_S)
        raise _late("the coordinator has not called the cast together", limit_s)

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
        if self.board.has("over"):
            raise RunOver(from_dict(self.board.read("over")))

    # -- the coordinator -------------------------------------------------------------------------

    def assemble(self, limit_s: float) -> list[Hello]:
        """Wait until all students are ready.

        Raises:
            StartupTimeout: naming the students that are not after `limit_s` seconds.
            KdclError: the first failure that a student reports meanwhile.
        """
        board, deadline = self.board, time.monotonic() + limit_s
        while missing := [name for rank, name in enumerate(board.names[:-1]) if rank not in self._ready]:
            self._read_letters()
            # One that died while it waited for the others is waited for anew: it may be replaced.
            self._ready = {
                rank: ready
                for rank, ready in self._ready.items()
                if not ready.watch.is_stale(board.pulse_of(rank))
            }
            if time.monotonic() > deadline:
                raise _late(f"no word from {', '.join(missing)}", limit_s)
            time.sleep(POLL_S)
        return [self._ready[rank].hello for rank in sorted(self._ready)]

    def call(self, call: Call) -> None:
        """Call all who are ready into a generation."""
        tickets = [ready.ticket for ready in self._ready.values()]
        start = asdict(call.start) if call.start is not None else None
        self._ready = {}
        self._pin("call", {"number": call.number, "start": start, "tickets": tickets})

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
                raise from_dict(letter["failed"])
            self._ready[letter["rank"]] = _Ready(letter["ticket"], Hello(**letter["hello"]))

    def _pin(self, key: str, value: dict[str, Any]) -> None:
        self.board.call(self.board.store.set, key, json.dumps(value))


def _late(what: str, limit_s: float) -> StartupTimeout:
    return StartupTimeout(
        f"{what} after {limit_s:g} s (limits.startup_s): is there room for every student, and can the "
        "hosts reach each other?",
        phase="start",
    )


def _manifest(data: dict[str, Any] | None) -> Manifest | None:
    if data is None:
        return None
    parts = {name: Part(**part) for name, part in data["parts"].items()}
    return Manifest(data["step"], parts, data["format"])
