"""The exchange group over real gloo when its limits end, ranks as threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from groups import Together, exchange_step, run_group, small_layout

from kdcl_dist.config.rounds import Kind
from kdcl_dist.errors import CoordinatorLost, KdclError, StudentLost
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import MessageLayout
from kdcl_dist.membership.diagnosis import GRACE_S

#: Seconds for transfers that nobody holds up, however slow the machine is.
LONG_S = 60.0


@pytest.fixture(params=[False, True], ids=["star", "mutual"])
def together(request: pytest.FixtureRequest) -> Together:
    """Runs on every rank of a real group, which has one of either shape."""
    return lambda work, step_s: run_group(work, step_s, small_layout(request.param))


def stay(until: Callable[[], object]) -> None:
    """Do nothing until something has happened, at most longer than any limit here."""
    deadline = time.monotonic() + 80
    while not until() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_an_answer_is_not_cut_off_where_another_cannot_be_reached() -> None:
    """Gloo tells nobody who has a part of a message that the rest will not come."""
    took_s, closed = [0.0] * 4, threading.Event()

    def work(exchange: Exchange) -> None:
        rank, layout = exchange.monitor.rank, exchange.answer.layout
        exchange.outgoing.reset(Kind.TRAIN, 0)
        exchange.gather()
        if rank == 1:
            exchange.post_receive(with_rows=True)
            time.sleep(0.1)
            exchange.close()
            closed.set()
            return
        if exchange.monitor.is_coordinator:
            stay(closed.is_set)
            time.sleep(0.4)
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
    results = run_group(work, 90.0, ExchangeLayout(MessageLayout(8, 3), big, all_to_all=False))
    assert all(isinstance(results[rank], KdclError) for rank in (0, 2, 3))
    assert max(took_s) < 80, "less than the limit"


@pytest.mark.parametrize("stopped", [False, True])
def test_one_that_does_not_answer_is_named_when_the_limit_ends(together: Together, stopped: bool) -> None:
    """While it is away. How soon after the limit: tests/unit/membership/test_diagnosis.py."""
    limit_s, took_s, told = 6.0 if stopped else 2.0, dict[int, float](), threading.Event()

    def work(exchange: Exchange) -> None:
        exchange.step_s = LONG_S
        exchange_step(exchange, 0)
        exchange.step_s, monitor = limit_s, exchange.monitor
        monitor.heartbeat.enter("data", 1)
        if monitor.rank == 2:
            stay(lambda: (monitor.heartbeat_of(2) or {}).get("step") == 1)
            if stopped:
                monitor.close()
            told.set()
            stay(lambda: len(took_s) == 3)
            assert len(took_s) == 3
            return
        stay(told.is_set)
        began = time.monotonic()
        try:
            exchange_step(exchange, 1)
        finally:
            took_s[monitor.rank] = time.monotonic() - began

    results = together(work, step_s=limit_s)
    for rank in (0, 1, 3):
        assert isinstance(results[rank], StudentLost)
        assert (results[rank].student, results[rank].phase) == ("c", "data")
        assert "limits.step_s" in str(results[rank])
    assert limit_s <= max(took_s.values())


@pytest.mark.parametrize(("phase", "more_s"), [("ensemble", 0.0), ("broadcast", GRACE_S)])
def test_a_coordinator_that_does_not_answer_is_named_when_the_limit_ends(
    together: Together, phase: str, more_s: float
) -> None:
    took_s = dict[int, float]()

    def work(exchange: Exchange) -> None:
        began, monitor = time.monotonic(), exchange.monitor
        exchange.outgoing.reset(Kind.TRAIN, 0)
        exchange.step_s = LONG_S
        exchange.gather()
        exchange.step_s = 3.0
        if monitor.is_coordinator:
            monitor.heartbeat.enter(phase, 0)
            stay(lambda: len(took_s) == 3)
            assert len(took_s) == 3
            return
        try:
            exchange.broadcast(with_rows=False)
        finally:
            took_s[monitor.rank] = time.monotonic() - began

    for error in together(work, step_s=3)[:3]:
        assert isinstance(error, CoordinatorLost)
        assert (error.step, error.phase, error.host) == (0, phase, "127.0.0.1")
        assert "stay(" in (error.detail or "")
    assert max(took_s.values()) >= 3


def test_who_waits_longer_than_the_limit_says_so_though_all_live(together: Together) -> None:
    """A student's limit ends first; it closes its connections, and so those of all others break."""

    def work(exchange: Exchange) -> None:
        exchange.outgoing.reset(Kind.TRAIN, 0)
        exchange.gather()
        if exchange.monitor.is_coordinator:  # as long as a storage may take
            stay(lambda: exchange.monitor.client.has(exchange.monitor.own_key("broke/b")))
        exchange.broadcast(with_rows=False, limit_s=1 if exchange.monitor.rank == 1 else 20)
        exchange.gather()
        exchange.broadcast(with_rows=False)  # those that have their answer find out here

    for error in together(work, step_s=20):
        assert isinstance(error, KdclError)
        assert "b waited longer than limits.startup_s" in str(error)  # the limit of a long wait
