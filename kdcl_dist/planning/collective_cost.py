"""What an exchange puts on the wire, counted from how gloo and the exchange group do it.

All-gather goes round a ring, every block in two halves that follow each other; broadcast goes down a
binomial tree, in which a rank passes on only what it has whole (gloo/allgather.cc and broadcast.cc of
github.com/facebookincubator/gloo). A star is one message between the root and each other rank, all at once:
gloo's gather, and `kdcl_dist.exchange.group` both ways.

Nothing is measured here; docs/scale.md says how well the counts tell the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Traffic", "ring", "star", "tree"]


@dataclass(frozen=True)
class Traffic:
    """Counts of one collective, or of several one after another.

    Attributes:
        rounds: messages that follow one another, each waiting for the one before.
        passages, volume: messages, and their bytes, one after another at the busiest rank, in or out.
        messages, total: all messages, and the bytes of all, whoever sends them.
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
    """Every rank gets a block of `nbytes` from every other."""
    others = ranks - 1
    return Traffic(others, 2 * others, others * nbytes, 2 * ranks * others, ranks * others * nbytes)


def star(ranks: int, nbytes: int) -> Traffic:
    """The root gets `nbytes` from every other rank, or sends them to every other."""
    others = ranks - 1
    return Traffic(1, others, others * nbytes, others, others * nbytes)


def tree(ranks: int, nbytes: int) -> Traffic:
    """Every rank gets the same `nbytes` from the root, over as many levels as log2(ranks), rounded up."""
    depth = math.ceil(math.log2(ranks))
    return Traffic(depth, depth, depth * nbytes, ranks - 1, (ranks - 1) * nbytes)
