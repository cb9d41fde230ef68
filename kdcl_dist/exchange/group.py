"""The exchange group: the students' messages are gathered, and the coordinator's answer comes back.

Where students learn from each other's own logits (`dml`) these are gloo's all-gather, a ring, and its
broadcast. Else nobody but the coordinator reads what a student sends, and a star is several times as fast:
each student sends to the coordinator, which sends the answer to each. Point to point also spares the change
to gloo's own thread. `python -m benchmarks.exchange` shows both.

In the star nobody waits for what it sends, only for what it receives: that shows that the other side has
it. Gloo forgets a message that it is about to send when the connection breaks, and its sender would wait
until the limit, but it tells whoever waits to receive, unless the message has come in part.

The group is built directly on a store, never as torch.distributed's global default, so that it can be
formed anew while its workers live, and several can exist in one process. The coordinator is the last
rank. Gloo carries it: the payload is small, lies on the CPU, and two ranks may share a device, which
NCCL refuses. Both the store and the group bind to one address only, the one given, since gloo's own
choice is the loopback wherever the host's name resolves there.

Beside `kdcl_dist.exchange.replicas` no other module of the package calls torch.distributed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kdcl_dist.errors import ForeignMessage, KdclError
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import HEADER, MAGIC, PROTOCOL, Flag, Message
from kdcl_dist.membership import failure_detector
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.store import Store
from kdcl_dist.membership.tcp_store import c10d

__all__ = ["Exchange"]


#: Seconds that forming the group may take at least, since many connections are made at once.
FORM_S = 30.0
#: Seconds that a student waits longer for the coordinator than that for the students: it knows who is late.
PATIENCE_S = 0.25
#: Seconds in which an answer that some get has left, when others cannot be reached.
LEAVE_S = 1.0
#: Tags of a student's message and of the coordinator's answer.
MESSAGE, ANSWER = 1, 2


class Exchange:
    """One rank's end of the group.

    Args:
        monitor: the monitor of the same run and generation; it knows who takes part and judges failures.
        store: the store below which the group meets.
        host: address of this process, by which the others reach it.
        layout: size of the messages, and who reads them, on which the whole cohort agreed.
        run: 64-bit number of the run, and generation of the group; messages of others are refused.
        step_s: limit for one collective.
        pinned: whether the own messages lie where a GPU reads and writes them directly.
    """

    def __init__(
        self,
        monitor: Monitor,
        store: Store,
        *,
        host: str,
        layout: ExchangeLayout,
        run: int,
        generation: int,
        step_s: float,
        pinned: bool = False,
    ) -> None:
        self.monitor, self.run, self.generation, self.all_to_all = monitor, run, generation, layout.all_to_all
        ranks = [*monitor.present, len(monitor.names) - 1]
        self.size, self.rank = len(ranks), ranks.index(monitor.rank)
        self.step_s = step_s
        self.root = self.size - 1
        reads = layout.all_to_all or self.rank == self.root
        self.messages = [Message(layout.message) for _ in ranks[:-1]] if reads else []
        self._unread = torch.empty(layout.message.nbytes if layout.all_to_all else 0, dtype=torch.uint8)
        self.outgoing = Message(layout.message, pinned=pinned)
        self.outgoing.set_identity(run=run, generation=generation, sender=self.rank)
        self.answer = Message(layout.answer, pinned=pinned)
        self.answer.set_identity(run=run, generation=generation, sender=self.root)
        limit = timedelta(seconds=max(step_s, FORM_S))
        self._group: Any | None = None
        self._expected: Any | None = None
        self._sent: list[Any] = []
        self._limit = "limits.step_s"
        self._group = self._guard(lambda: _form(store, self.rank, self.size, host, limit))

    def gather(self, limit_s: float | None = None) -> list[Message]:
        """Send `outgoing` to those who read it; returns the students' messages, in the order of the cohort.

        For a student that does not read them there are none, and `outgoing` is on its way until it has the
        answer. The next `gather` overwrites them.

        Args:
            limit_s: seconds of `limits.startup_s`, where a phase may take longer than a step.

        Raises:
            KdclError: the first failure of the run, when any process failed, died or did not answer.
        """
        self._run(self._all_gather if self.all_to_all else self._to_coordinator, limit_s)
        return self.messages

    def post_receive(self, with_rows: bool) -> None:
        """Make ready to receive the next answer; for a student, once it has sent.

        Gloo moves a message only when its receiver is ready. So the answer arrives while the student does
        something else, and does not wait for that.

        Args:
            with_rows: as `broadcast` is called then.

        Raises:
            KdclError: as `gather`.
        """
        if self.all_to_all:
            return
        part = self._part(with_rows)
        self._expected = self._guard(lambda: self._opened().recv([part], self.root, ANSWER))

    def broadcast(self, with_rows: bool, limit_s: float | None = None) -> Message:
        """Send the coordinator's `answer` to all, or receive it: the header, and the rows if `with_rows`.

        It is on its way until the next `gather` has ended, or `flush`.

        Args:
            with_rows: the same on every rank.
            limit_s: seconds of `limits.startup_s`, where the coordinator may need longer than a step.

        Raises:
            KdclError: as `gather`; also when the coordinator refused the step.
            ForeignMessage: the answer is not of this run, generation or step.
        """
        buffer = self._part(with_rows)
        action = self._broadcast if self.all_to_all else self._from_coordinator
        self._run(lambda group, limit: action(group, limit, buffer), limit_s)
        self._check_answer()
        if Flag.REFUSED in self.answer.flags:
            self.monitor.raise_failure()
        return self.answer

    def flush(self) -> None:
        """Wait until the last answer has left; for the coordinator, before it closes a group that is whole.

        Raises:
            KdclError: as `gather`.
        """
        if self._sent:
            self._run(self._await_sent, None)

    def close(self) -> None:
        """Close the connections; peers that wait in a collective fail at once.

        Gloo closes its sockets when the last reference to the group goes, and not before (neither
        `shutdown` nor `abort` does it), so nothing but this attribute may hold the group.
        """
        self._expected, self._sent = None, []  # they hold it too
        self._group = None

    def _part(self, with_rows: bool) -> Tensor:
        """What of the answer is sent."""
        return self.answer.buffer if with_rows else self.answer.buffer[: HEADER.itemsize]

    def _run(self, action: Callable[[Any, timedelta], None], limit_s: float | None) -> None:
        self._limit = "limits.step_s" if limit_s is None else "limits.startup_s"
        limit = timedelta(seconds=self.step_s if limit_s is None else limit_s)
        self._guard(lambda: action(self._opened(), limit))

    def _opened(self) -> Any:
        """The group, which only a transfer's own frame may hold."""
        if self._group is None:
            raise RuntimeError("the exchange is closed")
        return self._group

    def _to_coordinator(self, group: Any, limit: timedelta) -> None:
        if self.rank == self.root:
            buffers = [message.buffer for message in self.messages]
            _await_each([group.recv([buffer], rank, MESSAGE) for rank, buffer in enumerate(buffers)], limit)
            self._await_sent(group, limit)
        else:
            self._sent = [group.send([self.outgoing.buffer], self.root, MESSAGE)]

    def _from_coordinator(self, group: Any, limit: timedelta, buffer: Tensor) -> None:
        if self.rank == self.root:
            self._answer_all(group, buffer)
        else:
            expected, self._expected = self._expected, None
            expected = expected or group.recv([buffer], self.root, ANSWER)
            expected.wait(limit + timedelta(seconds=PATIENCE_S))
            self._await_sent(group, limit)

    def _answer_all(self, group: Any, buffer: Tensor) -> None:
        """Send the answer to all who can be reached before it is said that one cannot."""
        broken: RuntimeError | None = None
        for rank in range(self.root):
            try:
                self._sent.append(group.send([buffer], rank, ANSWER))
            except RuntimeError as error:
                broken = broken or error.with_traceback(None)
        if broken is not None:  # an answer that was cut off in its middle would be waited for until the limit
            with contextlib.suppress(RuntimeError):
                self._await_sent(group, timedelta(seconds=LEAVE_S))
            raise broken

    def _await_sent(self, group: Any, limit: timedelta) -> None:
        """See that what was sent last has left; it has where an answer to it came."""
        sent, self._sent = self._sent, []
        _await_each(sent, limit)

    def _all_gather(self, group: Any, limit: timedelta) -> None:
        # The group's own limit: with `wait(limit)` the thread that carries the collective would go on
        # waiting, and hold the connections open, after the wait was given up.
        group._set_default_timeout(limit)
        parts = [*(message.buffer for message in self.messages), self._unread]
        work: Any = dist.all_gather(parts, self.outgoing.buffer, group=group, async_op=True)
        work.wait()

    def _broadcast(self, group: Any, limit: timedelta, buffer: Tensor) -> None:
        group._set_default_timeout(limit)
        work: Any = dist.broadcast(buffer, group_src=self.root, group=group, async_op=True)
        work.wait()

    def _guard(self, action: Callable[[], Any]) -> Any:
        """Run a blocking action; round what breaks it into the first failure of the run.

        The own connections are closed first: those who wait on this rank then fail at once too, and
        the whole cohort knows within milliseconds instead of one limit after the other.
        """
        try:
            return action()
        except RuntimeError as error:
            cause = error.with_traceback(None)  # its frames would hold the group, and so its sockets
        raise self.diagnose(cause) from cause  # not above: before Python 3.11 the frames live until there

    def diagnose(self, cause: BaseException) -> KdclError:
        """Close the own connections after one broke; the first failure of the run."""
        self.close()
        unfinished = (
            [self.monitor.present[place] for place in cause.places] if isinstance(cause, _Unfinished) else []
        )
        return failure_detector.diagnose(
            self.monitor, cause, limit_s=self.step_s, limit_name=self._limit, unfinished=unfinished
        )

    def _check_answer(self) -> None:
        header = self.answer.header
        found = tuple(int(header[name]) for name in ("magic", "protocol", "run", "generation", "step"))
        expected = (MAGIC, PROTOCOL, self.run, self.generation, int(self.outgoing.header["step"]))
        if found != expected:
            raise ForeignMessage(
                "the coordinator's answer has (magic, protocol, run, generation, step) "
                f"{found}, not {expected}"
            )


class _Unfinished(RuntimeError):
    """The limit ended before the transfers with some ranks of the group, `places`, were done."""

    def __init__(self, places: Sequence[int], message: str) -> None:
        super().__init__(message)
        self.places = places


def _await_each(works: Sequence[Any], limit: timedelta) -> None:
    """Wait for the transfers with ranks 0, 1, ..., together at most for the limit.

    When that ends gloo closes the connections of the group, but what was transferred by then is.
    """
    deadline, places, message = time.monotonic() + limit.total_seconds(), list[int](), ""
    for place, work in enumerate(works):
        try:
            work.wait(timedelta(seconds=max(0.001, deadline - time.monotonic())))
        except RuntimeError as error:
            if not places and not failure_detector.timed_out(error):
                raise
            places.append(place)
            message = message or str(error)
    if places:
        raise _Unfinished(places, message)


def _form(store: Store, rank: int, size: int, host: str, limit: timedelta) -> Any:
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = limit
    return c10d.ProcessGroupGloo(c10d.PrefixStore("gloo", store), rank, size, options)
