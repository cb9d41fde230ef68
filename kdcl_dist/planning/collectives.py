"""What gloo's collectives put on the wire, counted from how it does them.

All-gather goes round a ring, every block in two halves that follow each other; gather is one message from
each rank to the root at once; broadcast goes down a binomial tree, in which a rank passes on only what it
has whole (gloo/allgather.cc, gather.cc and broadcast.cc of github.com/facebookincubator/gloo).
Nothing is measured here; docs/scale.md says how well the counts tell the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Traffic", "all_gather", "broadcast", "gather"]


@dataclass(frozen=True)
class Traffic:
    """Counts of one collective, or of several one after another.

    Attributes:
        rounds: messages that follow one another, each waiting for the one before.
        volume: bytes one after another through the busiest rank's connection to its network.
        messages, total: all messages, and the bytes of all, whoever sends them.
    """

    rounds: int
    volume: int
    messages: int
    total: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.rounds + other.rounds,
            self.volume + other.volume,
            self.messages + other.messages,
            self.total + other.total,
        )


def all_gather(ranks: int, nbytes: int) -> Traffic:
    """Every rank gets a block of `nbytes` from every other, round a ring."""
    others = ranks - 1
    return Traffic(others, others * nbytes, 2 * ranks * others, ranks * others * nbytes)


def gather(ranks: int, nbytes: int) -> Traffic:
    """One rank gets a block of `nbytes` from every other, all at once."""
    others = ranks - 1
    return Traffic(1, others * nbytes, others, others * nbytes)


def broadcast(ranks: int, nbytes: int) -> Traffic:
    """Every rank gets the same `nbytes` from one, down a tree with log2(ranks) levels."""
    depth = math.ceil(math.log2(ranks))
    return Traffic(depth, depth * nbytes, ranks - 1, (ranks - 1) * nbytes)
