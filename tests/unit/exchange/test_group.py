"""Messages, alignment and the exchange group over real gloo, ranks as threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.config.student import Worker
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.validation import check_messages
from kdcl_dist.errors import (
    CoordinatorLost,
    ForeignMessage,
    KdclError,
    LabelMismatch,
    MisalignedIds,
    NonFiniteLogits,
    ShapeMismatch,
    StaleContribution,
    StartupTimeout,
    StudentFailed,
    StudentLost,
)
from kdcl_dist.exchange.alignment import rows_of
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import Flag, Message, MessageLayout, StepMetrics
from kdcl_dist.membership.classification import GRACE_S
from kdcl_dist.membership.failure_detector import await_all
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.rendezvous import Rendezvous, WorkerInfo
from kdcl_dist.membership.tcp_store import connect_store, host_store, scoped

Together = Callable[..., list[Any]]
NAMES = ["a", "b", "c"]
TURN = Round(Kind.TRAIN, 0, 7)
RUN = 2**63 + 5
MEMBERS = [Worker(place, 0, name) for place, name in enumerate(NAMES)]


def message(sender: int, ids: list[int], labels: list[int] | None = None) -> Message:
    """A good message of round 7."""
    found = Message(MessageLayout(8, 3))
    found.set_identity(run=RUN, generation=1, sender=sender)
    found.reset(Kind.TRAIN, 7)
    logits = torch.tensor([[float(i), sender, 1.0] for i in ids]).half()
    found.write_rows(torch.tensor(ids), logits, torch.tensor(labels or [i % 3 for i in ids]))
    return found


def coordinator(*names: str) -> Aggregator:
    students = ", ".join(f"{{name: {name}, model: mlp}}" for name in names or NAMES)
    return Aggregator(parse_recipe(f"data: {{train: x, test: x}}\nstudents: [{students}]"))


def test_a_message_is_views_over_one_buffer() -> None:
    sent = message(1, [5, 2])
    sent.header["metrics"][:] = StepMetrics(step=6, loss=0.5)
    got = Message(sent.layout, sent.buffer.clone())
    ids, labels, logits = got.contribution()
    assert ids.tolist() == [5, 2]
    assert labels.tolist() == [2, 2]
    assert logits.tolist() == [[5, 1, 1], [2, 1, 1]]
    assert (got.step_metrics.step, got.step_metrics.loss) == (6, 0.5)
    assert got.layout.nbytes % 8 == 0
    assert int(got.header["run"]) == RUN


@pytest.mark.parametrize(("rows", "classes"), [(9, 3), (2, 4), (2, 2)])
def test_what_does_not_fit_the_layout_is_refused(rows: int, classes: int) -> None:
    with pytest.raises(ShapeMismatch, match=f"{classes}"):
        message(0, [1]).write_rows(torch.arange(rows), torch.zeros(rows, classes))


def test_rows_are_matched_by_id() -> None:
    ids = torch.tensor([9, 4, 7])
    assert rows_of(torch.tensor([7, 9, 4]), ids).tolist() == [2, 0, 1]
    assert rows_of(torch.tensor([4]), ids).tolist() == [1]
    for wanted, have in (([3], [9, 4]), ([1], []), ([1], [1, 1]), ([10], [9])):
        with pytest.raises(MisalignedIds):
            rows_of(torch.tensor(wanted), torch.tensor(have, dtype=torch.int64))


def test_alignment_does_not_depend_on_the_order_of_rows() -> None:
    one = coordinator().align([message(0, [3, 1, 2]), message(1, [1, 2, 3]), message(2, [2, 3, 1])])
    assert one.ids.tolist() == [1, 2, 3]
    assert one.logits[:, :, 0].tolist() == [[1, 2, 3]] * 3
    assert one.logits[:, 0, 1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_the_odd_one_out_is_named(odd: int) -> None:
    messages = [message(sender, [1, 2, 3]) for sender in range(3)]
    messages[odd] = message(odd, [1, 2, 4])
    with pytest.raises(MisalignedIds, match="other samples") as caught:
        coordinator().align(messages)
    assert caught.value.student == NAMES[odd]
    messages[odd] = message(odd, [1, 2, 3], [1, 0, 0])
    with pytest.raises(LabelMismatch, match="sample 2") as labelled:
        coordinator().align(messages)
    assert labelled.value.student == NAMES[odd]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_who_has_numbers_that_are_not_finite_is_left_out(value: float) -> None:
    messages = [message(sender, [1, 2, 3]) for sender in range(3)]
    expected = coordinator("a", "b").answer(coordinator("a", "b").parts(messages[:2]), 0)
    messages[2].logits[1, 0] = value
    answer = coordinator().answer(coordinator().parts(messages), 0)
    assert answer.bad == (2,)
    assert answer.target is not None
    assert expected.target is not None
    assert torch.equal(answer.target.log_probabilities, expected.target.log_probabilities)


def test_bad_numbers_are_borne_for_so_many_steps_in_a_row() -> None:
    one = coordinator()
    for bad in ([2], [2], [], [2], [0, 2]):
        one.check_bad(bad, 2)
    with pytest.raises(NonFiniteLogits, match="3 steps in a row") as caught:
        one.check_bad([2], 2)
    assert caught.value.student == "c"
    with pytest.raises(NonFiniteLogits):
        coordinator().check_bad([0], 0)


def test_a_cast_of_bad_numbers_only_learns_nothing_but_lives() -> None:
    messages = [message(sender, [1, 2, 3]) for sender in range(3)]
    for each in messages:
        each.logits[0, 0] = float("nan")
    answer = coordinator().answer(coordinator().parts(messages), 0)
    assert answer.bad == (0, 1, 2)
    assert answer.target is not None
    assert bool(torch.isfinite(answer.target.log_probabilities).all())


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("magic", 1, ForeignMessage),
        ("protocol", 9, ForeignMessage),
        ("run", 3, ForeignMessage),
        ("generation", 0, ForeignMessage),
        ("sender", 0, ForeignMessage),
        ("step", 6, StaleContribution),
        ("kind", int(Kind.EVALUATE), StaleContribution),
        ("part", 1, StaleContribution),
        ("classes", 4, ShapeMismatch),
        ("rows", 2, ShapeMismatch),
    ],
)
def test_every_field_of_the_header_is_checked(field: str, value: int, error: type[KdclError]) -> None:
    messages = [message(sender, [1, 2, 3]) for sender in range(3)]
    check_messages(messages, MEMBERS, TURN, run=RUN, generation=1)
    messages[1].header[field] = value
    with pytest.raises(error, match=f"{field} {value} instead of") as caught:
        check_messages(messages, MEMBERS, TURN, run=RUN, generation=1)
    assert (caught.value.student, caught.value.step) == ("b", 7)


@pytest.fixture(params=[False, True], ids=["star", "mutual"])
def together(request: pytest.FixtureRequest) -> Together:
    """Runs on every rank of a real group, which has one of either shape."""
    return lambda work, step_s=3.0: _together(
        work, step_s, ExchangeLayout(MessageLayout(8, 3), MessageLayout(8, 3), request.param)
    )


def _together(work: Callable[[Exchange], Any], step_s: float, wire: ExchangeLayout) -> list[Any]:
    """The results or errors of `work`, by rank."""
    server, endpoint = host_store("127.0.0.1")
    results: list[Any] = [None] * 4

    def member(rank: int) -> None:
        store = scoped(server if rank == 3 else connect_store(endpoint, 10), "run")
        monitor = Monitor(store, NAMES, rank)
        monitor.start_heartbeat("127.0.0.1", slow_s=step_s / 2)
        try:
            exchange = Exchange(
                monitor,
                store,
                host="127.0.0.1",
                layout=wire,
                run=RUN,
                generation=0,
                step_s=step_s,
            )
            results[rank] = work(exchange)
            exchange.flush()
            exchange.close()
        except KdclError as error:
            results[rank] = error
        finally:
            monitor.close()

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def step(exchange: Exchange, number: int) -> tuple[list[int], float]:
    exchange.outgoing.reset(Kind.TRAIN, number)
    if not exchange.monitor.is_coordinator:
        exchange.outgoing.write_rows(torch.tensor([number]), torch.full((1, 3), float(exchange.monitor.rank)))
    messages = exchange.gather()
    exchange.answer.reset(Kind.TRAIN, number)
    if exchange.monitor.is_coordinator:
        total = torch.stack([m.contribution().logits for m in messages]).sum(dim=0)
        exchange.answer.write_rows(torch.tensor([number]), total)
    answer = exchange.broadcast(with_rows=True)
    return [int(m.header["sender"]) for m in messages], answer.contribution().logits.sum().item()


def test_all_see_all_and_one_answer(together: Together) -> None:
    *students, coordinator = together(lambda exchange: [step(exchange, n) for n in range(20)])
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
                assert sent.wait(30), "the coordinator waits for a student that is busy"
        answer = exchange.broadcast(with_rows=True)
        if exchange.monitor.is_coordinator:
            sent.set()
        return answer.contribution().logits.sum().item()

    assert together(work, step_s=20) == [6.0] * 4


def test_an_answer_is_not_cut_off_where_another_cannot_be_reached() -> None:
    """Gloo tells nobody who has a part of a message that the rest will not come."""
    took_s = [0.0] * 4

    def work(exchange: Exchange) -> None:
        rank, layout = exchange.monitor.rank, exchange.answer.layout
        exchange.outgoing.reset(Kind.TRAIN, 0)
        exchange.gather()
        if rank == 1:
            exchange.post_receive(with_rows=True)
            time.sleep(0.1)
            exchange.close()
            return
        if exchange.monitor.is_coordinator:
            time.sleep(0.5)
            exchange.answer.reset(Kind.TRAIN, 0)
            exchange.answer.write_rows(torch.arange(layout.rows), torch.zeros(layout.rows, layout.classes))
        began = time.monotonic()
        try:
            exchange.broadcast(with_rows=True)
            exchange.gather()
            exchange.broadcast(with_rows=True)
        finally:
            took_s[rank] = time.monotonic() - began

    big = MessageLayout(8000, 1000)
    results = _together(work, 20.0, ExchangeLayout(MessageLayout(8, 3), big, all_to_all=False))
    assert all(isinstance(results[rank], KdclError) for rank in (0, 2, 3))
    assert max(took_s) < 15


def test_a_reported_failure_reaches_all_at_once(together: Together) -> None:
    def work(exchange: Exchange) -> float:
        step(exchange, 0)
        if exchange.monitor.rank == 1:
            error = StudentFailed("a user's mistake", student="b", step=1, phase="forward")
            exchange.close()
            raise exchange.monitor.report(error)
        began = time.monotonic()
        with pytest.raises(StudentFailed, match="a user's mistake"):
            step(exchange, 1)
        return time.monotonic() - began

    results = together(work, step_s=30)
    assert isinstance(results[1], StudentFailed)
    assert all(results[rank] < 15 for rank in (0, 2, 3))


@pytest.mark.parametrize("stopped", [False, True])
def test_one_that_does_not_answer_is_named_when_the_limit_ends(together: Together, stopped: bool) -> None:
    limit_s, took_s = 6.0 if stopped else 2.0, [0.0] * 4

    def work(exchange: Exchange) -> None:
        step(exchange, 0)
        began, monitor = time.monotonic(), exchange.monitor
        monitor.heartbeat.enter("data", 1)
        if monitor.rank == 2:
            time.sleep(1.5)  # until its heartbeat has told
            if stopped:
                monitor.close()
            time.sleep(limit_s + 1)
            return
        try:
            step(exchange, 1)
        finally:
            took_s[monitor.rank] = time.monotonic() - began

    results = together(work, step_s=limit_s)
    for rank in (0, 1, 3):
        assert isinstance(results[rank], StudentLost)
        assert (results[rank].student, results[rank].phase) == ("c", "data")
        assert "limits.step_s" in str(results[rank])
    # Nobody knows who is late in a ring until those who live have told so, at most one heartbeat later.
    assert limit_s <= max(took_s) < limit_s + 2


@pytest.mark.parametrize(("phase", "more_s"), [("ensemble", 0.0), ("broadcast", GRACE_S)])
def test_a_coordinator_that_does_not_answer_is_named_when_the_limit_ends(
    together: Together, phase: str, more_s: float
) -> None:
    took_s = [0.0] * 4

    def work(exchange: Exchange) -> None:
        began, monitor = time.monotonic(), exchange.monitor
        exchange.outgoing.reset(Kind.TRAIN, 0)
        exchange.gather()
        if monitor.is_coordinator:
            monitor.heartbeat.enter(phase, 0)
            time.sleep(3 + more_s + 3)
            return
        try:
            exchange.broadcast(with_rows=False)
        finally:
            took_s[monitor.rank] = time.monotonic() - began

    for error in together(work, step_s=3)[:3]:
        assert isinstance(error, CoordinatorLost)
        assert (error.step, error.phase, error.host) == (0, phase, "127.0.0.1")
        assert "time.sleep(" in (error.detail or "")
    assert 3 <= max(took_s) < 3 + more_s + 2


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
    def work(exchange: Exchange) -> None:
        exchange.outgoing.reset(Kind.TRAIN, 5)
        exchange.gather()
        exchange.answer.reset(Kind.TRAIN, 4)
        exchange.broadcast(with_rows=False)

    assert all(isinstance(result, ForeignMessage) for result in together(work))


def test_who_does_not_come_is_named() -> None:
    server, _ = host_store("127.0.0.1")
    monitors = [Monitor(scoped(server, "run"), NAMES, rank) for rank in (0, 3)]
    ready = WorkerInfo("a", "h", 1, "cpu", 1, 3, {}, {}, {})
    with pytest.raises(CoordinatorLost, match=r"limits\.startup_s"):
        Rendezvous(monitors[0]).join(ready, None, 0.1)
    with pytest.raises(StartupTimeout, match=r"b, c.*limits\.startup_s"):
        Rendezvous(monitors[1]).assemble([0, 1, 2], 0.3)


def test_a_letter_of_a_process_that_was_replaced_does_not_count() -> None:
    server, _ = host_store("127.0.0.1")
    student, chair = (Monitor(scoped(server, "run"), NAMES, rank) for rank in (0, 3))
    student.start_heartbeat("127.0.0.1")
    try:
        for pid, counts in ((os.getpid() + 1, False), (os.getpid(), True)):
            letter = WorkerInfo("a", "127.0.0.1", pid, "cpu", 1, 3, {}, {}, {})
            Rendezvous(student)._write({"info": asdict(letter), "position": None, "lost": None})
            rendezvous, deadline = Rendezvous(chair), time.monotonic() + 10
            while rendezvous.are_ready([0]) != counts:
                assert time.monotonic() < deadline
            assert list(rendezvous.ready()) == [0] * counts
    finally:
        student.close()


def test_who_dies_before_the_group_is_formed_is_found_at_once() -> None:
    server, _ = host_store("127.0.0.1")
    monitors = [Monitor(scoped(server, "run"), NAMES, rank) for rank in range(4)]
    monitors[3].is_gone = lambda name, pid: name == "b"
    for monitor in monitors:
        monitor.start_heartbeat("127.0.0.1")
    found: dict[int, KdclError] = {}

    def wait(monitor: Monitor) -> None:
        try:
            await_all(monitor, 60)
        except KdclError as error:
            found[monitor.rank] = error

    threads = [threading.Thread(target=wait, args=(monitors[rank],)) for rank in (0, 2, 3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    finally:
        for monitor in monitors:
            monitor.close()
    assert {str(error) for error in found.values()} == {str(found[3])}
    assert (type(found[3]), found[3].student, len(found)) == (StudentLost, "b", 3)
    assert monitors[3].lost == [("b", os.getpid())]


def test_who_is_not_there_when_the_group_is_to_be_formed_is_named() -> None:
    server, _ = host_store("127.0.0.1")
    monitor = Monitor(scoped(server, "run"), NAMES, 3)
    with pytest.raises(StudentLost, match=r"a, b, c did not answer within limits\.startup_s"):
        await_all(monitor, 0.2)


def test_only_the_first_failure_stands() -> None:
    server, _ = host_store("127.0.0.1")
    monitors = [Monitor(scoped(server, "run"), NAMES, rank) for rank in range(2)]
    first, second = StudentFailed("first", student="a"), StudentLost("second", student="b")
    assert monitors[0].report(first) is first
    assert str(monitors[1].report(second)) == str(first)
    assert isinstance(monitors[1].failure(), StudentFailed)


def test_who_waits_longer_than_the_limit_says_so_though_all_live(together: Together) -> None:
    """A student's limit ends first; it closes its connections, and so those of all others break."""

    def work(exchange: Exchange) -> None:
        exchange.outgoing.reset(Kind.TRAIN, 0)
        exchange.gather()
        if exchange.monitor.is_coordinator:
            time.sleep(3)  # as long as a storage may take
        exchange.broadcast(with_rows=False, limit_s=1 if exchange.monitor.rank == 1 else 20)
        exchange.gather()
        exchange.broadcast(with_rows=False)  # those that have their answer find out here

    for error in together(work, step_s=20):
        assert isinstance(error, KdclError)
        assert "b waited longer than limits.startup_s" in str(error)  # the limit of a long wait
