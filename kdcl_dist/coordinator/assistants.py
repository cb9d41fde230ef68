"""The coordinator's link to its assistants, which form the soft targets of the other shares of a step.

Shapes: S students.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.coordinator.step_sums import StepSums
from kdcl_dist.errors import KdclError
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.message import Flag
from kdcl_dist.exchange.shared import SharedExchange

__all__ = ["Assistants", "Order"]


class Order(NamedTuple):
    """What the coordinator tells its assistants before a round; assistants keep nothing from round to round.

    Attributes:
        round: of which they take part in those of TRAIN; END: they leave this generation.
        weights_S: of `general`, float64.
        flags: how the generation ended; see `Flag`.
    """

    round: Round
    weights_S: Tensor
    flags: Flag = Flag.NONE

    def tensor(self) -> Tensor:
        """As float64 (5 + S,)."""
        numbers = [self.round.kind, self.round.epoch, self.round.step, self.round.part, self.flags]
        return torch.cat([torch.tensor(numbers, dtype=torch.float64), self.weights_S])

    @classmethod
    def of(cls, tensor: Tensor) -> Order:
        """The order that `tensor` gave."""
        kind, epoch, step, part, flags = map(int, tensor[:5].tolist())
        return cls(Round(Kind(kind), epoch, step, part), tensor[5:].clone(), Flag(flags))


class Assistants:
    """The assistants of one generation; there may be none.

    Args:
        exchange: the generation's group.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange if isinstance(exchange, SharedExchange) else None

    def order(self, round: Round, weights_S: Tensor) -> None:
        """Tell them of the next round; arguments as of `Order`, errors as of `Exchange.gather`."""
        if self._exchange is not None and round.kind is not Kind.END:
            self._exchange.send_order(Order(round, weights_S).tensor())

    def dismiss(self, round: Round, weights_S: Tensor, flags: Flag) -> None:
        """Tell them that the generation has ended without a failure, and how; see `Flag`."""
        if self._exchange is not None:
            end = Round(Kind.END, round.epoch, round.step)
            with contextlib.suppress(KdclError):
                self._exchange.send_order(Order(end, weights_S, flags).tensor())
                self._exchange.flush()

    def share_rows(self, round: Round) -> int | None:
        """The rows of each student in the coordinator's own share; None: the round has no shares."""
        if self._exchange is None or round.kind is not Kind.TRAIN:
            return None
        return self._exchange.share_rows

    def add_reports(self, sums: StepSums) -> None:
        """Add the sums of all assistants to those of the coordinator; errors as of `Exchange.gather`."""
        if self._exchange is not None:
            reports = [torch.empty_like(sums.vector()) for _ in self._exchange.coordinators[1:]]
            self._exchange.receive_reports(reports)
            for report in reports:
                sums.add(report)
