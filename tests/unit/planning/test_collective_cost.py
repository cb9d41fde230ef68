"""The counts of gloo's collectives, against its loops played out message by message."""

from __future__ import annotations

from collections import Counter

import pytest

from kdcl_dist.planning.collective_cost import Traffic, ring, star, tree

#: Of one message: sender, receiver, bytes.
Sent = tuple[int, int, int]
SIZES = [2, 3, 4, 5, 8, 9, 17, 33, 64]


def counted(messages: list[Sent], rounds: int) -> Traffic:
    """The counts; the busiest rank is whoever sends or receives most."""
    passed, volume = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for sender, receiver, nbytes in messages:
        for end in (("out", sender), ("in", receiver)):
            passed[end] += 1
            volume[end] += nbytes
    busiest = max(passed.values()), max(volume.values())
    return Traffic(rounds, *busiest, len(messages), sum(nbytes for *_, nbytes in messages))


def played_ring(ranks: int, nbytes: int) -> Traffic:
    """In round t every rank forwards the block of the rank t before it, in two halves."""
    held = [{rank} for rank in range(ranks)]
    messages: list[Sent] = []
    round = 0
    while any(len(blocks) < ranks for blocks in held):
        moves = [(rank, (rank + 1) % ranks, (rank - round) % ranks) for rank in range(ranks)]
        round += 1
        for sender, receiver, block in moves:
            assert block in held[sender]
            messages += [(sender, receiver, half) for half in (nbytes // 2, nbytes - nbytes // 2)]
        for _, receiver, block in moves:
            held[receiver].add(block)
    return counted(messages, round)


def played_star(ranks: int, nbytes: int, roots: int = 1) -> Traffic:
    others = range(ranks - roots)
    return counted([(rank, ranks - 1 - root, nbytes) for rank in others for root in range(roots)], 1)


def played_tree(ranks: int, nbytes: int) -> Traffic:
    """In each round every rank that has the answer sends it to the rank 2^round further."""
    has, round, messages = {0}, 0, list[Sent]()
    while len(has) < ranks:
        reached = {sender + 2**round for sender in has} & set(range(ranks))
        round += 1
        messages += [(rank - 2 ** (round - 1), rank, nbytes) for rank in reached]
        has |= reached
    return counted(messages, round)


@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize("nbytes", [1, 1000, 4103])
def test_counts_are_those_of_the_algorithms(ranks: int, nbytes: int) -> None:
    assert ring(ranks, nbytes) == played_ring(ranks, nbytes)
    assert star(ranks, nbytes) == played_star(ranks, nbytes)
    assert tree(ranks, nbytes) == played_tree(ranks, nbytes)
    for roots in (2, 5):
        if roots < ranks:
            assert star(ranks, nbytes, roots) == played_star(ranks, nbytes, roots)


def test_collectives_add_up_one_after_another() -> None:
    assert Traffic(1, 2, 3, 4, 5) + Traffic(10, 20, 30, 40, 50) == Traffic(11, 22, 33, 44, 55)
