"""The board: a pulse of each process, and the first failure of each generation for all to read.

A key-value store that the coordinator hosts carries what is not part of a step. When one process dies
its peers fail too, within milliseconds of each other; the board keeps the first cause apart from what
followed from it. Pulses belong to the run, failures to one generation of its exchange group
(`kdcl_dist.meeting` says how one follows the other).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, Protocol

from kdcl_dist.errors import CoordinatorLost, KdclError, StudentLost, from_dict, one_line

__all__ = ["COORDINATOR", "Board", "Pulse", "Store", "Watch"]

COORDINATOR = "coordinator"
POLL_S = 0.02
PULSE_S = 1.0
#: A process whose pulse stands still for so long is taken for dead or stopped.
STALE_S = 4.0
#: How long survivors may take to say that they were cut off too, and the time in which most do.
GRACE_S, NOTICE_S = 3.0, 0.5
#: How a member's exchange ended: by its limit, or because another closed the connection.
LATE, CLOSED = "late", "closed"
#: Within which the coordinator's store answers, however busy it is.
ANSWER_S = 10.0


class Store(Protocol):
    """The part of torch.distributed's stores that is used."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value."""

    def get(self, key: str, /) -> bytes:
        """Read a value that is known to exist."""

    def add(self, key: str, value: int, /) -> int:
        """Add to a counter that begins at 0; return what it is then."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys exist."""

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Write `desired` if the key is absent and `expected` is empty; return what stands there then."""


@dataclass
class Pulse:
    """What a process is doing right now; written by its loop, sent by its pulse thread."""

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


class Board:
    """One process's view of the store.

    Args:
        store: the store, already under a prefix of this run.
        names: the students in the order of the cast.
        rank: place in the cast; len(names) is the coordinator.
        generation: of the exchange group whose failures are meant.
        is_gone: tells whether the process of a name and process id is known to be dead.

    Attributes:
        cause: the failure that broke this generation, as this process learned it from the others.
        lost: name and process id of those whose death or silence broke it; known to the coordinator.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        rank: int,
        generation: int = 0,
        is_gone: Callable[[str, int], bool] | None = None,
    ) -> None:
        self.store, self._is_gone = store, is_gone
        self.names = [*names, COORDINATOR]
        self.rank = rank
        self.pulse = Pulse()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._beats = itertools.count()
        self._asked: float | None = None
        self.enter(generation)

    @property
    def name(self) -> str:
        """This process's name in the cast."""
        return self.names[self.rank]

    @property
    def is_coordinator(self) -> bool:
        """Whether this process is the coordinator, which judges who is lost."""
        return self.rank == self._last

    @property
    def _last(self) -> int:
        """The coordinator's rank."""
        return len(self.names) - 1

    def enter(self, generation: int, present: Sequence[int] | None = None) -> None:
        """Turn to the next generation, in which nothing has failed yet.

        Args:
            generation: its number.
            present: ranks of the students that take part; None: all.
        """
        self.generation = generation
        self.present = list(range(len(self.names) - 1)) if present is None else list(present)
        self.cause: KdclError | None = None
        self.lost: list[tuple[str, int]] = []
        # Looked at with each pulse, so that whose stands still is known as soon as a limit ends.
        self.watches = {rank: Watch() for rank in (self.present if self.is_coordinator else [self._last])}
        if self._thread is not None:  # at once: a pulse of the generation before means a new process
            self._beat()

    # -- failures --------------------------------------------------------------------------------

    def report(self, error: KdclError) -> KdclError:
        """Pin up a failure unless there is one already; returns the first failure of the generation."""
        try:
            error.at(host=self._host_of(error))
            first = self.call(self.store.compare_set, self._own("failure"), "", json.dumps(error.to_dict()))
        except CoordinatorLost:  # this process's own error is all there is
            return error
        found = from_dict(json.loads(first))
        return error if found.to_dict() == error.to_dict() else found

    def _host_of(self, error: KdclError) -> str | None:
        """Where the member is whose failure it is, by its pulse."""
        name = COORDINATOR if isinstance(error, CoordinatorLost) else error.student or self.name
        pulse = self.pulse_of(self.names.index(name)) if name in self.names else None
        return None if pulse is None else str(pulse["host"])

    def failure(self) -> KdclError | None:
        """The first failure that was reported, if any."""
        key = self._own("failure")
        return from_dict(self.read(key)) if self.has(key) else None

    def raise_failure(self) -> None:
        """Raise the first failure that was reported, if any."""
        if (error := self.failure()) is not None:
            self.cause = error
            raise error

    def explain(
        self, cause: BaseException, *, timed_out: bool, limit_s: float, unheard: Sequence[int] = ()
    ) -> KdclError:
        """Why a collective failed: the first failure of the generation, found or judged; also `cause`.

        The coordinator names the students that it waited for in vain. Where it does not know them it waits
        until every student has either said that it was cut off too or fallen silent, and names the silent
        ones. Students wait for that verdict.

        Args:
            cause: what the collective raised.
            timed_out: whether it ended by its limit rather than by a closed connection.
            limit_s: seconds that a live student may be busy before it notices.
            unheard: ranks that are known not to have done their part of it when its limit ended.
        """
        how, answer_s = (LATE, self._answer_s()) if timed_out else (CLOSED, ANSWER_S)
        try:
            self.call(self.store.set, self._own(f"cut/{self.rank}"), how, answer_s=answer_s)
            if self.is_coordinator:
                found = self._judge(cause, timed_out, limit_s, unheard)
            else:
                found = self._verdict(timed_out, limit_s)
        except CoordinatorLost as error:
            found = error
        except Exception as error:
            found = self._coordinator_lost(f"cannot be reached ({one_line(error)})")
        self.cause = found
        return found

    def _answer_s(self) -> float:
        """Seconds in which the store must answer when a limit has ended: some have passed since a pulse."""
        asked = self._asked
        return max(NOTICE_S, STALE_S - (0 if asked is None else time.monotonic() - asked))

    def _judge(
        self, cause: BaseException, timed_out: bool, limit_s: float, unheard: Sequence[int]
    ) -> KdclError:
        began, late = time.monotonic(), [self.rank] if timed_out else []
        silent, dead = {rank: Watch() for rank in self.present}, list[int]()
        while time.monotonic() < began + (GRACE_S if late else limit_s):
            if (error := self.failure()) is not None:
                return error
            late += self._hear(silent)
            dead = [rank for rank, seen in silent.items() if self._is_dead(rank, seen, bool(late))]
            if known := [rank for rank in unheard if rank in silent]:
                silent = {rank: silent[rank] for rank in known}
                break
            busy = [seen for rank, seen in silent.items() if rank not in dead]
            # Who lives has noticed by its next pulse, unless it is busy; and the limit ended on who is busy.
            noticed = late and time.monotonic() > began + NOTICE_S and all(seen.beats > 1 for seen in busy)
            if noticed or not busy:
                break
            time.sleep(POLL_S)
        lost = [rank for rank in dead if rank in silent] or list(silent)  # beside them others are just busy
        if not lost:
            return self.report(self._nobody_lost(cause, late))
        return self.report(self._lost(lost, died=not late and any(rank in dead for rank in lost)))

    def _hear(self, silent: dict[int, Watch]) -> list[int]:
        """Take out those who said that they were cut off; returns those of them whose own limit ended.

        One whose limit ended closed its connections, and so broke those of the others.
        """
        heard = [rank for rank in silent if self.has(self._own(f"cut/{rank}"))]
        for rank in heard:
            del silent[rank]
        return [r for r in heard if self.call(self.store.get, self._own(f"cut/{r}")).decode() == LATE]

    def _is_dead(self, rank: int, seen: Watch, waited: bool) -> bool:
        """Whether a process has fallen silent, was replaced, or is known to be dead.

        Args:
            rank: of the process.
            seen: its pulse since the exchange broke.
            waited: whether it was waited for until the limit, so that its pulse before counts too.
        """
        pulse = self.pulse_of(rank)
        stale = seen.is_stale(pulse) or (waited and self.watches[rank].is_stale(pulse))
        if stale or self._is_new(pulse):
            return True
        return (
            pulse is not None and self._is_gone is not None and self._is_gone(self.names[rank], pulse["pid"])
        )

    def _is_new(self, pulse: dict[str, Any] | None) -> bool:
        """Whether a process is not of this generation: the one that was, in its place, is dead."""
        return pulse is not None and pulse["generation"] != self.generation

    def _verdict(self, timed_out: bool, limit_s: float) -> KdclError:
        began, watch = time.monotonic(), self.watches[self._last] if timed_out else Watch()
        while (error := self.failure()) is None:
            pulse = self.pulse_of(self._last)
            if watch.is_stale(pulse):
                return self.report(self._coordinator_lost("gives no sign of life"))
            if time.monotonic() > began + self._patience(pulse, timed_out, limit_s):
                return self.report(self._coordinator_lost("did not answer within limits.step_s"))
            time.sleep(POLL_S)
        return error

    def _patience(self, pulse: dict[str, Any] | None, timed_out: bool, limit_s: float) -> float:
        """Seconds that a coordinator which lives has for its verdict.

        While it forms an ensemble it waits for nobody, in an exchange it notices that this process closed
        its connections; else its storage may be slow, or it waits for students that are busy.
        """
        if timed_out and pulse is not None and not self.has(self._own(f"cut/{self._last}")):
            if pulse["phase"] == "ensemble" and pulse["stack"] is not None:
                return 0.0
            if pulse["phase"] in ("ensemble", "gather", "broadcast"):
                return GRACE_S
        return limit_s + GRACE_S + STALE_S

    def _lost(self, ranks: Sequence[int], died: bool) -> KdclError:
        """The students of some ranks are dead, or others waited too long for them."""
        pulses = {rank: self.pulse_of(rank) or {} for rank in ranks}
        self.lost = [
            (self.names[rank], pulse["pid"])
            for rank, pulse in pulses.items()
            if pulse and not self._is_new(pulse)
        ]
        names = ", ".join(self.names[rank] for rank in ranks)
        seen = pulses[ranks[0]]
        how = "died" if died else "did not answer within limits.step_s"
        # A pulse is up to a second old: it tells the phase only if it is of the step that is waited for, or
        # if its process has stood there for long.
        step = seen["step"] if seen.get("stack") else max(self.pulse.step, seen.get("step", 0))
        return StudentLost(
            f"{names} {how}; see its log for the reason",
            student=self.names[ranks[0]],
            step=step,
            phase=seen.get("phase") if seen.get("step") == step else None,
            host=seen.get("host"),
            detail=seen.get("stack"),
        )

    def _nobody_lost(self, cause: BaseException, late: Sequence[int]) -> KdclError:
        """All live and were cut off: one was too slow, which answers again by now, or a link is bad."""
        names = ", ".join(self.names[rank] for rank in late)
        slow = f"{names} waited longer than limits.step_s, although every process lives: raise it"
        broke = f"the exchange broke although every process lives: {one_line(cause)}"
        return KdclError(slow if late else broke, step=self.pulse.step, phase=self.pulse.phase)

    def _coordinator_lost(self, how: str) -> CoordinatorLost:
        watch = self.watches.get(self._last)
        seen = (watch.last if watch is not None else None) or {}
        step = max(self.pulse.step, seen.get("step", 0))
        return CoordinatorLost(
            f"the coordinator {how}",
            step=step,
            phase=seen["phase"] if seen.get("step") == step else self.pulse.phase,
            host=seen.get("host"),
            detail=seen.get("stack"),
        )

    # -- pulse -----------------------------------------------------------------------------------

    def start_pulse(self, host: str, slow_s: float = 60.0) -> None:
        """Send this process's pulse from a thread until `close`.

        Args:
            host: this process's address.
            slow_s: seconds in one phase after which the stack of the loop is sent with it.
        """
        self.pulse.thread = threading.get_ident()
        self._host, self._slow_s = host, slow_s
        self.call(self.store.set, f"bye/{self.rank}", "")  # takes back that of a process before this one

        def beat() -> None:
            while not self._stop.is_set() and self._beat():
                self._stop.wait(PULSE_S)

        self._thread = threading.Thread(target=beat, name="kdcl-pulse", daemon=True)
        self._thread.start()

    def _beat(self) -> bool:
        """Send a pulse; False when the store is gone, which the loop will find out by itself."""
        now, own = self.pulse, {"host": self._host, "pid": os.getpid(), "generation": self.generation}
        place = {"step": now.step, "phase": now.phase, "stack": now.stack(self._slow_s)}
        self._asked = time.monotonic()
        try:
            self.store.set(f"pulse/{self.rank}", json.dumps({"count": next(self._beats)} | own | place))
            self._look()
        except Exception:
            return False
        self._asked = None
        return True

    def _look(self) -> None:
        for rank, seen in self.watches.items():
            if self.store.check([key := f"pulse/{rank}"]):
                seen.look(json.loads(self.store.get(key)))

    def close(self) -> None:
        """Stop the pulse; one that the store does not take is left alone."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=POLL_S if isinstance(self.cause, CoordinatorLost) else 2 * PULSE_S)

    def say_bye(self) -> None:
        """Tell the coordinator that this student needs the store no more."""
        if isinstance(self.cause, CoordinatorLost):
            return
        with contextlib.suppress(CoordinatorLost):  # it has gone first, which does no harm
            self.call(self.store.set, f"bye/{self.rank}", "1")

    def await_byes(self, limit_s: float) -> None:
        """Keep the store open until every student that lives has left, at most `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        watch = {rank: Watch() for rank in range(len(self.names) - 1)}
        while watch and time.monotonic() < deadline:
            watch = {
                rank: seen
                for rank, seen in watch.items()
                if not self._has_left(rank) and not seen.is_stale(self.pulse_of(rank))
            }
            time.sleep(POLL_S)

    def _has_left(self, rank: int) -> bool:
        key = f"bye/{rank}"
        return self.has(key) and self.store.get(key) == b"1"

    def pulse_of(self, rank: int) -> dict[str, Any] | None:
        """The last pulse of a member, if it sent one."""
        key = f"pulse/{rank}"
        pulse: dict[str, Any] | None = self.read(key) if self.has(key) else None
        return pulse

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
            return within(answer_s, lambda: operation(*arguments))
        except Exception as error:
            self.cause = self._coordinator_lost(f"died or cannot be reached ({one_line(error)})")
            raise self.cause from error

    def _own(self, key: str) -> str:
        """A key of this generation."""
        return f"{self.generation}/{key}"


def within(limit_s: float, operation: Callable[[], Any]) -> Any:
    """The result of an operation that may never end, as those of torch's store where a host is cut off.

    Raises:
        TimeoutError: there is none within `limit_s` seconds; the operation is left alone in its thread.
    """
    future = Future[Any]()

    def work() -> None:
        try:
            future.set_result(operation())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="store-operation", daemon=True).start()
    try:
        return future.result(limit_s)
    except FutureTimeout:
        raise TimeoutError(f"no answer within {limit_s:.2g} s") from None


class Watch:
    """Whether a pulse stands still, by this process's own clock."""

    def __init__(self) -> None:
        self.last: dict[str, Any] | None = None
        self.since = time.monotonic()
        self.beats = 0

    def look(self, pulse: dict[str, Any] | None) -> None:
        """Take note of what the pulse is now."""
        if pulse != self.last:
            self.last, self.since, self.beats = pulse, time.monotonic(), self.beats + 1

    def is_stale(self, pulse: dict[str, Any] | None, after_s: float = STALE_S) -> bool:
        """Whether this pulse has been the same for so many seconds."""
        self.look(pulse)
        return time.monotonic() - self.since > after_s
