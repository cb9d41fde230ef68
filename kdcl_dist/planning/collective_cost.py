"""Messages and bytes of an exchange, counted from the algorithms of gloo and of the exchange group.

All-gather runs around a ring; each block travels in two halves, one after the other. Broadcast runs down a
binomial tree; a rank forwards a block only when it has received all of it (gloo/allgather.cc and broadcast.cc
of github.com/facebookincubator/gloo). A star is one message between the root and each other rank, all at the
same time: gloo's gather, and both directions of `kdcl_dist.exchange.group`.

This module measures nothing; docs/results/scale-model.md compares the counts with measured times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Traffic", "ring", "star", "tree"]


@dataclass(frozen=True)
class Traffic:
    """Counts of one collective, or of a sequence of collectives.

    Attributes:
        rounds: length of the longest chain of messages in which each waits for the previous one.
        passages, volume: messages and bytes in one direction at the busiest rank.
        messages, total: messages and bytes of all ranks together.
    """

    rounds: int
    passages: int
    volume: int
    messages: int
    total: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.rounds + other.rounds,
            self.passages + other.passages,
            self.volume + other.volume,
            self.messages + other.messages,
            self.total + other.total,
        )


def ring(ranks: int, nbytes: int) -> Traffic:
    """All-gather: every rank receives a block of `nbytes` from every other rank."""
    others = ranks - 1
    return Traffic(others, 2 * others, others * nbytes, 2 * ranks * others, ranks * others * nbytes)


def star(ranks: int, nbytes: int, roots: int = 1) -> Traffic:
    """Gather or scatter: each root receives `nbytes` from every other rank, or sends them to every other.

    Roots exchange nothing with each other; more than one are several coordinators, each with its share.
    """
    others = ranks - roots
    busiest, messages = max(others, roots), others * roots
    return Traffic(1, busiest, busiest * nbytes, messages, messages * nbytes)


def tree(ranks: int, nbytes: int) -> Traffic:
    """Broadcast: every rank receives the same `nbytes` from the root, over ceil(log2(ranks)) levels."""
    depth = math.ceil(math.log2(ranks))
    return Traffic(depth, depth, depth * nbytes, ranks - 1, (ranks - 1) * nbytes)
