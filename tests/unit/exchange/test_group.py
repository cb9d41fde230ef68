"""The exchange group over real gloo, ranks as threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from groups import Together, exchange_step, run_group, small_layout
from torch import Tensor

from kdcl_dist.config.rounds import Kind
from kdcl_dist.errors import ForeignMessage, NonFiniteLogits, SilentCorruption, StudentFailed
from kdcl_dist.exchange import group
from kdcl_dist.exchange.checksum import write_checksum
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.message import Flag, Message


@pytest.fixture(params=[False, True], ids=["star", "mutual"])
def together(request: pytest.FixtureRequest) -> Together:
    """Runs on every rank of a real group, which has one of either shape."""
    return lambda work, step_s=60.0: run_group(work, step_s, small_layout(request.param))


def test_all_see_all_and_one_answer(together: Together) -> None:
    *students, coordinator = together(lambda exchange: [exchange_step(exchange, n) for n in range(20)])
    assert coordinator == [([0, 1, 2], 9.0)] * 20
    assert [student in ([([0, 1, 2], 9.0)] * 20, [([], 9.0)] * 20) for student in students] == [True] * 3


def test_an_answer_does_not_wait_for_a_student_that_expects_it(together: Together) -> None:
    """Gloo's own transfers end when both sides take part; all-gather and broadcast have no such way."""
    sent = threading.Event()

    def work(exchange: Exchange) -> float:
        exchange.outgoing.reset(Kind.TRAIN, 0)
        exchange.answer.reset(Kind.TRAIN, 0)
        if exchange.monitor.is_coordinator:
            exchange.gather()
            exchange.answer.write_rows(torch.tensor([0]), torch.full((1, 3), 2.0))
        else:
            exchange.outgoing.write_rows(torch.tensor([0]), torch.zeros(1, 3))
            exchange.gather()
            exchange.post_receive(with_rows=True)
            if exchange.monitor.rank == 1 and not exchange.all_to_all:
                assert sent.wait(120), "the coordinator waits for a student that is busy"
        answer = exchange.broadcast(with_rows=True)
        if exchange.monitor.is_coordinator:
            sent.set()
        return answer.contribution().logits.sum().item()

    assert together(work, step_s=200) == [6.0] * 4


@pytest.mark.parametrize(("sender", "named"), [(1, {"b"}), (3, {"a", "b", "c"})], ids=["message", "answer"])
@pytest.mark.parametrize("all_to_all", [False, True], ids=["star", "mutual"])
def test_a_bit_that_flips_on_the_way_is_found(
    all_to_all: bool, sender: int, named: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names who sent the message, or who received the answer."""

    def checksum_and_flip(message: Message, part: Tensor) -> None:
        write_checksum(message, part)
        if (int(message.header["sender"]), int(message.header["step"])) == (sender, 1):
            part[-1] ^= 4

    monkeypatch.setattr(group, "write_checksum", checksum_and_flip)
    layout = small_layout(all_to_all)._replace(checksums=True)
    # The exception's frames hold the group: the others wait for their limit.
    found = run_group(lambda exchange: [exchange_step(exchange, n) for n in range(3)], 6.0, layout)
    assert {type(each) for each in found} == {SilentCorruption}
    assert {each.student for each in found} <= named
    assert {each.step for each in found} == {1}


def test_a_reported_failure_reaches_all_at_once(together: Together) -> None:
    def work(exchange: Exchange) -> float:
        exchange_step(exchange, 0)
        if exchange.monitor.rank == 1:
            error = StudentFailed("a user's mistake", student="b", step=1, phase="forward")
            exchange.close()
            raise exchange.monitor.report(error)
        began = time.monotonic()
        with pytest.raises(StudentFailed, match="a user's mistake"):
            exchange_step(exchange, 1)
        return time.monotonic() - began

    results = together(work, step_s=90)
    assert isinstance(results[1], StudentFailed)
    assert all(results[rank] < 60 for rank in (0, 2, 3))


def test_a_refused_step_ends_all(together: Together) -> None:
    def work(exchange: Exchange) -> None:
        exchange.outgoing.reset(Kind.TRAIN, 0)
        exchange.gather()
        exchange.answer.reset(Kind.TRAIN, 0)
        if exchange.monitor.is_coordinator:
            exchange.monitor.report(NonFiniteLogits("bad", student="a", step=0))
            exchange.answer.header["flags"] = Flag.REFUSED
        exchange.broadcast(with_rows=False)

    assert [type(result) for result in together(work)] == [NonFiniteLogits] * 4


def test_an_answer_of_another_step_is_refused(together: Together) -> None:
    all_have_it = threading.Barrier(4)  # whose link ends before would find that instead

    def work(exchange: Exchange) -> None:
        exchange.outgoing.reset(Kind.TRAIN, 5)
        exchange.gather()
        exchange.answer.reset(Kind.TRAIN, 4)
        try:
            exchange.broadcast(with_rows=False)
        finally:
            all_have_it.wait(120)

    assert all(isinstance(result, ForeignMessage) for result in together(work))


def test_peers_read_the_logits_of_the_step(together: Together) -> None:
    """A message may still be on its way to a peer when the next is written."""

    def work(exchange: Exchange) -> list[list[float]]:
        found = []
        for step in range(30):
            exchange.outgoing.reset(Kind.TRAIN, step)
            if not exchange.monitor.is_coordinator:
                value = 100.0 * step + exchange.rank
                exchange.outgoing.write_rows(torch.tensor([step]), torch.full((1, 3), value))
            messages = exchange.gather()
            exchange.answer.reset(Kind.TRAIN, step)
            exchange.broadcast(with_rows=False)
            found.append([float(message.contribution().logits[0, 0]) for message in messages])
        return found

    expected = [[100.0 * step + rank for rank in range(3)] for step in range(30)]
    *students, coordinator = together(work)
    assert coordinator == expected
    assert all(student in (expected, [[]] * 30) for student in students)


def test_the_coordinator_works_on_a_message_while_others_are_awaited(together: Together) -> None:
    seen, go = [], threading.Event()

    def work(exchange: Exchange) -> None:
        exchange.outgoing.reset(Kind.TRAIN, 0)
        exchange.answer.reset(Kind.TRAIN, 0)
        if exchange.rank == 2:
            assert go.wait(120), "nothing happens before the last message is there"

        def arrived(number: int) -> None:
            seen.append(number)
            if len(seen) == 2:
                go.set()

        exchange.gather(arrived=arrived)
        exchange.broadcast(with_rows=False)

    assert together(work, step_s=200) == [None] * 4
    assert seen == [0, 1, 2]
