"""The exchange group: it gathers the students' messages and sends the coordinator's answer back.

Each student sends to the coordinator, which sends the answer to each: a star. Where students learn from each
other's own logits (`dml`), each also sends to each other student. All transfers are point to point, several
times as fast as gloo's collectives: those hand a message on from rank to rank, on a thread of gloo's own.
`python -m benchmarks.exchange` measures both.

A rank waits only for what it receives, which shows that the other side has its message. When a
connection breaks, gloo forgets a message that it is about to send, and its sender would wait until the
limit. Gloo does notify a rank that waits to receive, unless a part of the message has arrived.

The group is built directly on a store, never as torch.distributed's global default. So it can form anew
while its workers live, and several groups can exist in one process. The coordinator is the last rank. Gloo
carries the messages: they are small and lie on the CPU, and two ranks may share a device, which NCCL
refuses. The store and the group bind to the one address that they are given, since gloo's own choice is the
loopback wherever the host's name resolves to that.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from torch import Tensor

from kdcl_dist.errors import ForeignMessage, KdclError, SilentCorruption
from kdcl_dist.exchange.checksum import is_intact, write_checksum
from kdcl_dist.exchange.gloo import find_links, form_gloo
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import HEADER, Flag, Identity, Message
from kdcl_dist.exchange.transfers import Unfinished, await_each
from kdcl_dist.membership import failure_detector
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import RunStore, scoped
from kdcl_dist.utils.listeners import Link, end_links

__all__ = ["ANSWER", "MESSAGE", "PATIENCE_S", "Exchange"]

#: Seconds that forming the group may take at least, since many connections are made at once.
FORM_S = 30.0
#: Seconds that a student's limit is longer than the coordinator's, which knows which student is late.
PATIENCE_S = 0.25
#: Seconds in which an answer leaves for the students that can be reached, when others cannot.
LEAVE_S = 1.0
#: Tags of a student's message and of the coordinator's answer.
MESSAGE, ANSWER = 1, 2


class Exchange:
    """One rank's end of the group.

    Args:
        monitor: of this process, in the same generation; it knows which workers take part.
        store: the generation's part of the store, through which the group forms.
        host: address of this process, to which the others connect.
        layout: size of the messages, and who reads them; the same on every rank.
        run: 64-bit number of the run.
        generation: of the group; messages of another run or generation are refused.
        step_s: limit of one transfer.
        pinned: whether `outgoing` and `answer` lie in pinned memory, which a GPU reads and writes directly.
        assistants: of the coordinator, the last ranks before its own; see `kdcl_dist.exchange.shared`.

    Attributes:
        workers: number of ranks that send messages and are answered, the first ones.
        outgoing: the message that this student sends next.
        answer: the coordinator's answer: written by the coordinator, received by the students.
        beside: called when a connection breaks, to close others by which processes wait for this one.
    """

    def __init__(
        self,
        monitor: Monitor,
        store: RunStore,
        *,
        host: str,
        layout: ExchangeLayout,
        run: int,
        generation: int,
        step_s: float,
        pinned: bool = False,
        assistants: int = 0,
    ) -> None:
        self.monitor, self.run, self.generation, self.all_to_all = monitor, run, generation, layout.all_to_all
        ranks = [*monitor.present, monitor.coordinator_rank]
        self.size, self.rank = len(ranks), ranks.index(monitor.rank)
        self.step_s, self.has_checksums = step_s, layout.checksums
        self.root = self.size - 1
        self.workers = self.root - assistants
        reads = layout.all_to_all or self.rank == self.root
        self.messages = [Message(layout.message) for _ in range(self.workers)] if reads else []
        self.outgoing, self._other = (Message(layout.message, pinned=pinned) for _ in range(2))
        for message in (self.outgoing, self._other):
            message.set_identity(run=run, generation=generation, sender=self.rank)
        self.answer = Message(layout.answer, pinned=pinned)
        self.answer.set_identity(run=run, generation=generation, sender=self.root)
        limit = timedelta(seconds=max(step_s, FORM_S))
        self.beside: Callable[[], object] = lambda: None
        self._group: Any | None = None
        self._posted: Any | None = None
        self._sent: list[Any] = []
        self._sent_before: list[Any] = []
        self._expected: list[Any] = []
        self._arrived: Callable[[int], object] | None = None
        self._limit, self._is_silent = "limits.step_s", False
        self._store = scoped(store, "gloo")  # torch may use it for as long as the group lives
        self._links = set[Link]()
        self._group = self._guard(
            lambda: form_gloo(self._store, self.rank, self.size, host=host, limit=limit)
        )
        self._links = self._guard(lambda: find_links(self._store, self.rank, self.size))

    def gather(
        self, limit_s: float | None = None, arrived: Callable[[int], object] | None = None
    ) -> list[Message]:
        """Send `outgoing` to its readers; returns the students' messages, in the order of the cohort.

        The coordinator has them at once, and students that read them with the answer. `outgoing` is in use
        until the student has the answer. The next `gather` overwrites the messages.

        Args:
            limit_s: seconds of `limits.startup_s`, where a phase may take longer than a step.
            arrived: called with the number of each message that the coordinator has, while it waits for
                those after it. Nothing is checked by then.

        Raises:
            KdclError: the first failure of the generation: a process failed, died or did not answer.
        """
        self._arrived = arrived
        self._run(self._to_coordinator, limit_s)
        return self.messages

    def post_receive(self, with_rows: bool) -> None:
        """Post the receive of the next answer; for a student, after `gather`.

        Gloo moves a message only to a posted receive. So the answer arrives while the student computes.

        Args:
            with_rows: as of the next `broadcast`.

        Raises:
            KdclError: as of `gather`.
        """
        part = self._part(with_rows)
        self._posted = self._guard(lambda: self._open_group().recv([part], self.root, ANSWER))

    def broadcast(self, with_rows: bool, limit_s: float | None = None) -> Message:
        """Send the coordinator's `answer`, or receive it: its header, and its rows if `with_rows`.

        The coordinator's `answer` is in use until the next `gather` or `flush` has ended.

        Args:
            with_rows: the same on every rank.
            limit_s: seconds of `limits.startup_s`, where the coordinator may need longer than a step.

        Raises:
            KdclError: as of `gather`; also when the coordinator refused the step.
            ForeignMessage: the answer is not of this run, generation or step.
            SilentCorruption: a message or an answer has other bits than were sent; also raised by `gather`.
        """
        buffer = self._part(with_rows)
        self._run(lambda group, limit: self._from_coordinator(group, limit, buffer), limit_s)
        self._check(self.answer)
        if self.answer.has(Flag.REFUSED):
            self.monitor.raise_failure()
        if self._expected:  # the message may still be on its way to a peer
            self.messages[self.rank], self.outgoing, self._other = self.outgoing, self._other, self.outgoing
        return self.answer

    def flush(self) -> None:
        """Wait until all that this process sent has left, before it closes a working group.

        Raises:
            KdclError: as of `gather`.
        """
        self._sent, self._sent_before = self._sent + self._sent_before, []
        if self._sent:
            self._run(self._await_sent, None)

    def close(self) -> None:
        """Close the connections; the transfers of the peers fail at once.

        Gloo closes its sockets when the last reference to the group is dropped, and not before (neither
        `shutdown` nor `abort` closes them). So no other object may hold the group.
        """
        end_links(self._links)  # gloo closes one after the other
        # Transfers hold the group too.
        held = [self._group, self._posted, self._sent, self._sent_before, self._expected]
        self._links, self._posted, self._sent, self._sent_before, self._expected = set(), None, [], [], []
        self._group = None
        threading.Thread(target=held.clear, name="closing-group").start()

    def _part(self, with_rows: bool) -> Tensor:
        """The part of the answer that is sent."""
        return self.answer.buffer if with_rows else self.answer.buffer[: HEADER.itemsize]

    def _run(self, action: Callable[[Any, timedelta], None], limit_s: float | None) -> None:
        self._limit = "limits.step_s" if limit_s is None else "limits.startup_s"
        limit = timedelta(seconds=self.step_s if limit_s is None else limit_s)
        with self._silence_breaks(limit_s):
            self._guard(lambda: action(self._open_group(), limit))

    def _silence_breaks(self, limit_s: float | None) -> AbstractContextManager[None]:
        """A wait as long as storages may need ends sooner when a process gives no sign of life."""
        if limit_s is None:
            return contextlib.nullcontext()
        return self.monitor.on_silence(self.step_s, self._break)

    def _break(self) -> None:
        """End the connections, and so the wait of the thread that uses them."""
        self._limit, self._is_silent = "limits.step_s", True
        end_links(self._links)

    def _open_group(self) -> Any:
        """The group; only the frame of a transfer may hold it."""
        if self._group is None:
            raise RuntimeError("the exchange is closed")
        return self._group

    def _to_coordinator(self, group: Any, limit: timedelta) -> None:
        if self.rank >= self.workers:
            buffers = [message.buffer for message in self.messages]
            works = [group.recv([buffer], rank, MESSAGE) for rank, buffer in enumerate(buffers)]
            await_each(works, limit, self._arrived)
            self._check_bits_of(range(self.workers))
            self._await_sent(group, limit)
        else:
            self._write_checksum(self.outgoing, self.outgoing.buffer)
            peers = [rank for rank in range(self.root) if self.all_to_all and rank != self.rank]
            self._expected = [group.recv([self.messages[rank].buffer], rank, MESSAGE) for rank in peers]
            readers = [self.root, *peers]
            self._sent = [group.send([self.outgoing.buffer], rank, MESSAGE) for rank in readers]

    def _from_coordinator(self, group: Any, limit: timedelta, buffer: Tensor) -> None:
        if self.rank >= self.workers:
            self._answer_all(group, buffer)
            return
        posted, self._posted = self._posted, None
        posted = posted or group.recv([buffer], self.root, ANSWER)
        posted.wait(limit + timedelta(seconds=PATIENCE_S))
        self._check_bits(buffer, self.monitor.name, "the answer that it received")
        for expected in self._expected:  # the coordinator has these messages by now
            expected.wait(limit)
        if self.all_to_all:
            self._check_bits_of([rank for rank in range(self.root) if rank != self.rank])
            # A peer that is lost does not take this message, and a wait for it would end with the limit only.
            # The message before has left: since they took it, all peers have sent another.
            self._sent, self._sent_before = self._sent_before, self._sent
        self._await_sent(group, limit)

    def _answer_all(self, group: Any, buffer: Tensor) -> None:
        """Send the answer to every student that can be reached, then raise if one cannot."""
        broken: RuntimeError | None = None
        self._write_checksum(self.answer, buffer)
        for rank in range(self.workers):
            try:
                self._sent.append(group.send([buffer], rank, ANSWER))
            except RuntimeError as error:
                broken = broken or error.with_traceback(None)
        if broken is not None:  # a student that received a part of the answer would wait until its limit
            with contextlib.suppress(RuntimeError):
                self._await_sent(group, timedelta(seconds=LEAVE_S))
            raise broken

    def _write_checksum(self, message: Message, part: Tensor) -> None:
        """Write the checksum of the part of a message that is sent, if the run's messages have one."""
        if self.has_checksums:
            write_checksum(message, part)

    def _check_bits_of(self, ranks: Sequence[int]) -> None:
        """See that no bit of the messages of some ranks has changed since they were sent."""
        for rank in ranks:
            name = self.monitor.names[self.monitor.present[rank]]
            self._check_bits(self.messages[rank].buffer, name, "its message")

    def _check_bits(self, part: Tensor, student: str, what: str) -> None:
        if not self.has_checksums or is_intact(part):
            return
        error = SilentCorruption(
            f"{what} has other bits than were sent: the memory or the network of a host may be faulty",
            student=student,
            step=int(self.outgoing.header["step"]),
            phase=self.monitor.heartbeat.phase,
        )
        self.monitor.cause = self.monitor.report(error)
        raise self.monitor.cause

    def _await_sent(self, group: Any, limit: timedelta) -> None:
        """Wait until the last messages have left, as they have once they are answered."""
        sent, self._sent = self._sent, []
        await_each(sent, limit)

    def _guard(self, action: Callable[[], Any]) -> Any:
        """Run a blocking action; raise the first failure of the generation for what breaks it.

        This rank closes its connections first: the ranks that wait for it then fail at once too, and the
        whole cohort knows within milliseconds instead of one limit after the other.
        """
        try:
            return action()
        except RuntimeError as error:
            cause = error.with_traceback(None)  # its frames would hold the group, and so its sockets
        raise self.diagnose(cause) from cause  # outside `except`, where Python 3.10 still holds the frames

    def diagnose(self, cause: BaseException) -> KdclError:
        """Close the connections after one broke; returns the first failure of the generation."""
        self.close()
        self.beside()
        if self._is_silent:
            cause = RuntimeError("timed out: a process gives no sign of life")
        indices = cause.indices if isinstance(cause, Unfinished) else ()
        unfinished = [self.monitor.present[index] for index in indices]
        return failure_detector.diagnose(
            self.monitor, cause, limit_s=self.step_s, limit_name=self._limit, unfinished=unfinished
        )

    def _check(self, answer: Message) -> None:
        """See that an answer is of this run, generation and part of a step."""
        found, expected = answer.identity.place, self.outgoing.identity.place
        if found != expected:
            names = Identity._fields[: len(found)]
            raise ForeignMessage(f"the coordinator's answer has ({', '.join(names)}) {found}, not {expected}")
