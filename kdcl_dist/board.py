"""The board: where the cast meets, and where the first failure is pinned up for all to read.

A key-value store that the coordinator hosts carries what is not part of a step: who is there and with
what, the permission to start, a pulse of each process, and the first failure of the run. When one
process dies its peers fail too, within milliseconds of each other; the board keeps the first cause
apart from what followed from it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from kdcl_dist.errors import CoordinatorLost, KdclError, StartupTimeout, StudentLost, from_dict, one_line

__all__ = ["COORDINATOR", "Board", "Hello", "Pulse", "Store"]

COORDINATOR = "coordinator"
POLL_S = 0.02
PULSE_S = 1.0
#: A process whose pulse stands still for so long is taken for dead or stopped.
STALE_S = 4.0
#: How long survivors may take to say that they were cut off too.
GRACE_S = 3.0


class Store(Protocol):
    """The part of torch.distributed's stores that is used."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value."""

    def get(self, key: str, /) -> bytes:
        """Read a value that is known to exist."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys exist."""

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Write `desired` if the key is absent and `expected` is empty; return what stands there then."""


@dataclass(frozen=True)
class Hello:
    """What one student tells the cast before the first step."""

    name: str
    host: str
    pid: int
    device: str
    parameters: int
    classes: int
    plan: dict[str, int]
    data: dict[str, str]
    versions: dict[str, str]


@dataclass
class Pulse:
    """What a process is doing right now; written by its loop, sent by its pulse thread."""

    step: int = 0
    phase: str = "start"

    def enter(self, phase: str, step: int | None = None) -> None:
        """Note a new phase, and the step it belongs to."""
        self.phase = phase
        self.step = self.step if step is None else step


class Board:
    """One process's view of the store.

    Args:
        store: the store, already under a prefix of this run and generation.
        names: the students in the order of the cast.
        rank: place in the cast; len(names) is the coordinator.
    """

    def __init__(self, store: Store, names: Sequence[str], rank: int) -> None:
        self.store = store
        self.names = [*names, COORDINATOR]
        self.rank = rank
        self.pulse = Pulse()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """This process's name in the cast."""
        return self.names[self.rank]

    @property
    def is_coordinator(self) -> bool:
        """Whether this process is the coordinator, which judges who is lost."""
        return self.rank == len(self.names) - 1

    # -- meeting ---------------------------------------------------------------------------------

    def say_hello(self, hello: Hello) -> None:
        """Tell the coordinator that this student is ready to step."""
        self._call(self.store.set, f"hello/{self.rank}", json.dumps(asdict(hello)))

    def await_hellos(self, limit_s: float) -> list[Hello]:
        """Wait for all students; for the coordinator.

        Raises:
            StartupTimeout: naming the students that are missing after `limit_s` seconds.
            KdclError: the first failure that any process reported meanwhile.
        """
        keys = [f"hello/{rank}" for rank in range(len(self.names) - 1)]

        def missing() -> str:
            absent = [name for name, key in zip(self.names, keys, strict=False) if not self._has(key)]
            return f"no word from {', '.join(absent)}"

        self._await(keys, limit_s, missing)
        return [Hello(**self._read(key)) for key in keys]

    def welcome(self, hellos: Sequence[Hello]) -> None:
        """Tell the students that the cast is complete."""
        self._call(self.store.set, "welcome", json.dumps([asdict(hello) for hello in hellos]))

    def await_welcome(self, limit_s: float) -> list[Hello]:
        """Wait until the cast is complete; errors as `await_hellos`."""
        self._await(["welcome"], limit_s, lambda: "the coordinator has not welcomed the cast")
        return [Hello(**hello) for hello in self._read("welcome")]

    def _await(self, keys: list[str], limit_s: float, missing: Callable[[], str]) -> None:
        deadline = time.monotonic() + limit_s
        while not self._has(*keys):
            self.raise_failure()
            if time.monotonic() > deadline:
                raise self.report(
                    StartupTimeout(
                        f"{missing()} after {limit_s:g} s (limits.startup_s): is there room for every "
                        "student, and can the hosts reach each other?",
                        phase="start",
                    )
                )
            time.sleep(POLL_S)

    # -- failures --------------------------------------------------------------------------------

    def report(self, error: KdclError) -> KdclError:
        """Pin up a failure unless there is one already; returns the first failure of the run."""
        try:
            first = self.store.compare_set("failure", "", json.dumps(error.to_dict()))
        except Exception:  # the store is gone: this process's own error is all there is
            return error
        found = from_dict(json.loads(first))
        return error if found.to_dict() == error.to_dict() else found

    def failure(self) -> KdclError | None:
        """The first failure that was reported, if any."""
        return from_dict(self._read("failure")) if self._has("failure") else None

    def raise_failure(self) -> None:
        """Raise the first failure that was reported, if any."""
        if (error := self.failure()) is not None:
            raise error

    def explain(self, cause: BaseException, *, timed_out: bool, limit_s: float) -> KdclError:
        """Why a collective failed: the first failure of the run, found or judged.

        The coordinator waits until every student has either said that it was cut off too or fallen
        silent, and names the silent ones; students wait for that verdict.

        Args:
            cause: what the collective raised.
            timed_out: whether it ended by its limit rather than by a closed connection.
            limit_s: seconds that a live student may be busy before it notices.
        """
        try:
            self.store.set(f"cut/{self.rank}", "1")
            return self._judge(cause, timed_out, limit_s) if self.is_coordinator else self._verdict(limit_s)
        except CoordinatorLost as error:
            return error.at(step=self.pulse.step, phase=self.pulse.phase)
        except Exception as error:
            return self._coordinator_lost(error).at(step=self.pulse.step, phase=self.pulse.phase)

    def _judge(self, cause: BaseException, timed_out: bool, limit_s: float) -> KdclError:
        deadline = time.monotonic() + (GRACE_S if timed_out else limit_s)
        watch = {rank: _Watch() for rank in range(len(self.names) - 1)}
        while time.monotonic() < deadline:
            if (error := self.failure()) is not None:
                return error
            watch = {rank: seen for rank, seen in watch.items() if not self._has(f"cut/{rank}")}
            stale = [seen.is_stale(self._pulse_of(rank)) for rank, seen in watch.items()]
            if all(stale):
                break
            time.sleep(POLL_S)
        return self.report(self._lost(sorted(watch), cause, timed_out))

    def _verdict(self, limit_s: float) -> KdclError:
        deadline = time.monotonic() + limit_s + GRACE_S + STALE_S
        watch, coordinator = _Watch(), len(self.names) - 1
        while time.monotonic() < deadline and not watch.is_stale(self._pulse_of(coordinator)):
            if (error := self.failure()) is not None:
                return error
            time.sleep(POLL_S)
        return self.report(self._coordinator_lost(TimeoutError("it gives no sign of life")))

    def _lost(self, ranks: Sequence[int], cause: BaseException, timed_out: bool) -> KdclError:
        if not ranks:
            return KdclError(
                f"the exchange broke although every process lives: {one_line(cause)}",
                step=self.pulse.step,
                phase=self.pulse.phase,
            )
        names = ", ".join(self.names[rank] for rank in ranks)
        seen = self._pulse_of(ranks[0]) or {}
        how = "did not answer within limits.step_s" if timed_out else "died"
        # A pulse is up to a second old: it tells the phase only if it is of the step that is waited for.
        step = max(self.pulse.step, seen.get("step", 0))
        return StudentLost(
            f"{names} {how}; see its log for the reason",
            student=self.names[ranks[0]],
            step=step,
            phase=seen.get("phase") if seen.get("step") == step else None,
            host=seen.get("host"),
        )

    def _coordinator_lost(self, cause: BaseException) -> KdclError:
        return CoordinatorLost(f"the coordinator died or cannot be reached ({one_line(cause)})")

    # -- pulse -----------------------------------------------------------------------------------

    def start_pulse(self, host: str) -> None:
        """Send this process's pulse from a thread until `close`."""

        def beat() -> None:
            count = 0
            while not self._stop.is_set():
                count += 1
                pulse = {"count": count, "host": host} | asdict(self.pulse)
                try:
                    self.store.set(f"pulse/{self.rank}", json.dumps(pulse))
                except Exception:  # the store is gone; the loop will find out by itself
                    return
                self._stop.wait(PULSE_S)

        self._thread = threading.Thread(target=beat, name="kdcl-pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the pulse."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * PULSE_S)

    def say_bye(self) -> None:
        """Tell the coordinator that this student needs the store no more."""
        try:
            self.store.set(f"bye/{self.rank}", "1")
        except Exception:  # the coordinator has gone first, which does no harm
            return

    def await_byes(self, limit_s: float) -> None:
        """Keep the store open until every student that lives has left, at most `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        watch = {rank: _Watch() for rank in range(len(self.names) - 1)}
        while watch and time.monotonic() < deadline:
            watch = {
                rank: seen
                for rank, seen in watch.items()
                if not self._has(f"bye/{rank}") and not seen.is_stale(self._pulse_of(rank))
            }
            time.sleep(POLL_S)

    def _pulse_of(self, rank: int) -> dict[str, Any] | None:
        key = f"pulse/{rank}"
        pulse: dict[str, Any] | None = self._read(key) if self._has(key) else None
        return pulse

    # -- the store -------------------------------------------------------------------------------

    def _has(self, *keys: str) -> bool:
        return bool(self._call(self.store.check, list(keys)))

    def _read(self, key: str) -> Any:
        return json.loads(self._call(self.store.get, key))

    def _call(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return operation(*arguments)
        except Exception as error:
            raise self._coordinator_lost(error) from error


class _Watch:
    """Whether a pulse stands still, by this process's own clock."""

    def __init__(self) -> None:
        self.last: dict[str, Any] | None = None
        self.since = time.monotonic()

    def is_stale(self, pulse: dict[str, Any] | None) -> bool:
        if pulse != self.last:
            self.last, self.since = pulse, time.monotonic()
        return time.monotonic() - self.since > STALE_S
