"""A star with several coordinators, which divide the samples of a training step among them.

The coordinator takes part in every round. Its assistants, the last ranks before it, take part in training
steps: each student sends each coordinator a share of its rows, and is answered by each. A share is a range of
the step's sample ids in ascending order: students read the samples of a step in different orders. In all
other rounds the exchange is the star of `kdcl_dist.exchange.group`.

The coordinator sends its assistants an order at each round, before it gathers; after a training step it
receives a report from each. Both are a few numbers, for which no student waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind, share_of
from kdcl_dist.exchange.group import ANSWER, MESSAGE, PATIENCE_S, Exchange
from kdcl_dist.exchange.message import Flag, Message, MessageLayout
from kdcl_dist.exchange.transfers import await_each
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import RunStore

__all__ = ["SharedExchange"]

#: Tags of the coordinator's order and of an assistant's report.
ORDER, REPORT = 3, 4


class SharedExchange(Exchange):
    """One rank's end of the group.

    Args:
        recipe: of the run, whose students have no replicas.
        more: as of `Exchange`, as are the others.

    Attributes:
        coordinators: the ranks that answer: that of the coordinator, then those of its assistants.
        share_rows: the rows that a coordinator expects of each student in a training step.
    """

    def __init__(
        self, monitor: Monitor, store: RunStore, *, recipe: Recipe, assistants: int, **more: Any
    ) -> None:
        self._ordered: list[Any] = []  # the transfers of `_leaving`
        self._leaving = torch.empty(0)
        super().__init__(monitor, store, assistants=assistants, **more)
        self.coordinators = [self.root, *range(self.workers, self.root)]
        sizes = [share_of(recipe.part_size, number, len(self.coordinators)) for number in self._from_last()]
        self.share_rows, self._whole = 0, self.messages
        if self.rank >= self.workers:
            self.share_rows = sizes[self.coordinators.index(self.rank)]
            self._share = [self._message(self.share_rows) for _ in range(self.workers)]
            self.answer = self._message(self.share_rows)
        else:
            self._sizes = sizes
            self._parts, self._answers = ([self._message(size) for size in sizes] for _ in range(2))

    def _from_last(self) -> range:
        """The coordinators' numbers, so that the one that also keeps the record has the smallest share."""
        return range(len(self.coordinators) - 1, -1, -1)

    def _message(self, rows: int) -> Message:
        """A message of this rank with room for exactly so many rows."""
        like = self.outgoing.layout
        message = Message(MessageLayout(rows, like.classes, like.dtype))
        message.set_identity(run=self.run, generation=self.generation, sender=self.rank)
        return message

    # -- messages and answers ----------------------------------------------------------------------

    @property
    def _is_shared(self) -> bool:
        """Whether the round is a training step, as every rank has noted in its own message."""
        return self.outgoing.kind == Kind.TRAIN

    def _to_coordinator(self, group: Any, limit: timedelta) -> None:
        if self.rank < self.workers and self._is_shared:
            self._split()
            pairs = zip(self._parts, self.coordinators, strict=True)
            self._sent = [group.send([part.buffer], rank, MESSAGE) for part, rank in pairs]
            return
        self.messages = self._share if self._is_shared else self._whole
        patience_s = PATIENCE_S if self.rank != self.root else 0.0  # the coordinator says who is late
        super()._to_coordinator(group, limit + timedelta(seconds=patience_s))

    def _split(self) -> None:
        """Copy each coordinator's share of this worker's message; all learn whether the whole is finite."""
        whole, order_B = self.outgoing.contribution(), torch.argsort(self.outgoing.contribution().ids)
        flags = self.outgoing.flags | (Flag.NONE if whole.is_finite else Flag.NOT_FINITE)
        for part, start in zip(self._parts, accumulate(self._sizes, initial=0), strict=False):
            rows = order_B[start : start + part.layout.rows]  # fewer, if the student has too few
            part.header[()] = self.outgoing.header[()]
            part.header["flags"], part.header["rows"] = flags, len(rows)
            for own, taken in zip(whole, part.contribution(), strict=True):
                torch.index_select(own, 0, rows, out=taken)
            self._write_checksum(part, part.buffer)

    def post_receive(self, with_rows: bool) -> None:
        """As of `Exchange`: with rows from all coordinators."""
        if not with_rows:
            super().post_receive(with_rows)
            return
        self._posted = self._guard(lambda: self._receives(self._open_group()))

    def _receives(self, group: Any) -> list[Any]:
        pairs = zip(self._answers, self.coordinators, strict=True)
        return [group.recv([answer.buffer], rank, ANSWER) for answer, rank in pairs]

    def _from_coordinator(self, group: Any, limit: timedelta, buffer: Tensor) -> None:
        if self.rank >= self.workers or not self._is_shared:
            super()._from_coordinator(group, limit, buffer)
            return
        posted, self._posted = self._posted, None
        await_each(posted or self._receives(group), limit + timedelta(seconds=PATIENCE_S))
        for answer in self._answers:
            self._check_bits(answer.buffer, self.monitor.name, "an answer that it received")
        self._await_sent(group, limit)
        self._join()

    def _join(self) -> None:
        """Make one answer of those of all coordinators; a step that one refuses is refused."""
        self.answer.header[()] = self._answers[0].header[()]
        for answer in self._answers:
            self._check(answer)
            self.answer.header["flags"] = self.answer.flags | (answer.flags & Flag.REFUSED)
        parts = [answer.contribution() for answer in self._answers]
        ids, _, targets = (torch.cat(columns) for columns in zip(*parts, strict=True))
        self.answer.write_rows(ids, targets)

    # -- orders and reports ------------------------------------------------------------------------

    def send_order(self, order: Tensor) -> None:
        """Send an order to each assistant, for the coordinator.

        Args:
            order: float64, of the same size each time; in use until the next.

        Raises:
            KdclError: as of `gather`.
        """
        self._run(lambda group, limit: self._order(group, limit, order), None)

    def _order(self, group: Any, limit: timedelta, order: Tensor) -> None:
        self._await_orders(limit)
        self._leaving = order
        self._ordered = [group.send([order], rank, ORDER) for rank in self.coordinators[1:]]

    def _await_orders(self, limit: timedelta) -> None:
        """Wait until the last orders have left."""
        ordered, self._ordered = self._ordered, []
        await_each(ordered, limit, first=self.workers)

    def flush(self) -> None:
        """As of `Exchange`; orders have left as well."""
        if self._ordered:
            self._run(lambda _, limit: self._await_orders(limit), None)
        super().flush()

    def receive_order(self, order: Tensor, limit_s: float) -> None:
        """Receive the coordinator's next order, for an assistant.

        Args:
            order: takes it; of its size and type.
            limit_s: seconds in which it comes.

        Raises:
            KdclError: as of `gather`.
        """
        self._run(lambda group, limit: group.recv([order], self.root, ORDER).wait(limit), limit_s)

    def send_report(self, report: Tensor) -> None:
        """Send a report to the coordinator, for an assistant; raises as `gather`.

        Args:
            report: float64, of the same size each time; in use until the next order has come.
        """
        self._run(lambda group, limit: self._report(group, report), None)

    def _report(self, group: Any, report: Tensor) -> None:
        self._leaving = report
        self._ordered = [group.send([report], self.root, REPORT)]

    def receive_reports(self, reports: Sequence[Tensor]) -> None:
        """Receive the report of each assistant, for the coordinator.

        Args:
            reports: take them; of their size and type.

        Raises:
            KdclError: as of `gather`.
        """
        self._run(lambda group, limit: self._collect(group, limit, reports), None)

    def _collect(self, group: Any, limit: timedelta, reports: Sequence[Tensor]) -> None:
        works = [group.recv([report], self.workers + i, REPORT) for i, report in enumerate(reports)]
        await_each(works, limit, first=self.workers)

    def close(self) -> None:
        """As of `Exchange`."""
        self._ordered = []  # transfers hold the group too
        super().close()
