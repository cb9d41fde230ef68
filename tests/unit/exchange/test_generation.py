"""One generation of the exchange group: all form it when ready, and its first failure is that of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cohorts import MakeRecipe
from together import at_once

from kdcl_dist.errors import CoordinatorFailed, KdclError, StudentFailed, StudentLost
from kdcl_dist.exchange.generation import open_exchange
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import connect_store, host_store, scoped
from kdcl_dist.run.run import Run

#: The ranks of the students a and b, and of the coordinator.
A, B, COORDINATOR = range(3)
Work = Callable[[Exchange], Any]


def run_ranks(run: Run, work: dict[int, Work], **more: dict[int, Any]) -> list[Any]:
    """Open generation 4 on all ranks as threads; returns what `work` gives or raises, by rank."""
    server, endpoint = host_store("127.0.0.1")
    found: list[Any] = [None] * 3

    def rank_work(rank: int) -> None:
        store = scoped(server if rank == COORDINATOR else connect_store(endpoint, 10), run.id)
        monitor = Monitor(store, ["a", "b"], rank)
        monitor.start_heartbeat("127.0.0.1")
        monitor.enter(4, step=7)
        given = {name: by_rank[rank] for name, by_rank in more.items() if rank in by_rank}
        try:
            with open_exchange(run, monitor, host="127.0.0.1", classes=4, **given) as exchange:
                found[rank] = work.get(rank, wait)(exchange)
        except KdclError as error:
            found[rank] = error
        finally:
            monitor.close()

    at_once(rank_work, 3)
    return found


@pytest.fixture
def run(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Run:
    return replace(make_run(make_recipe()), generation=4)


def wait(exchange: Exchange) -> None:
    exchange.gather()
    exchange.broadcast(with_rows=False)


def raises(exchange: Exchange) -> None:
    exchange.monitor.heartbeat.enter("forward", 8)
    raise ArithmeticError("a fault on order")


def test_all_form_the_group_of_the_generation(run: Run) -> None:
    found = run_ranks(run, dict.fromkeys(range(3), lambda exchange: (exchange.generation, exchange.rank)))
    assert found == [(4, A), (4, B), (4, COORDINATOR)]


@pytest.mark.parametrize(("rank", "kind"), [(B, StudentFailed), (COORDINATOR, CoordinatorFailed)])
def test_an_exception_is_the_first_failure_of_all(rank: int, kind: type[KdclError], run: Run) -> None:
    found = run_ranks(run, {rank: raises})
    assert len({str(error) for error in found}) == 1
    for error in found:
        assert type(error) is kind
        assert (error.student, error.step, error.phase) == ("b" if rank == B else None, 8, "forward")
        assert "ArithmeticError: a fault on order" in error.message


def test_the_first_failure_stays_what_it_is(run: Run) -> None:
    def lost(exchange: Exchange) -> None:
        raise StudentLost("a died", student="a", step=6, phase="data")

    for error in run_ranks(run, {COORDINATOR: lost}):
        assert isinstance(error, StudentLost)
        assert (error.student, error.step, error.phase) == ("a", 6, "data")


def test_a_failure_before_the_group_is_formed_is_found_by_all(run: Run) -> None:
    def prepare() -> None:
        raise ArithmeticError("a fault on order")

    for error in run_ranks(run, {}, prepare={A: prepare}):
        assert isinstance(error, StudentFailed)
        assert (error.student, error.step, error.phase) == ("a", 7, "start")


def test_other_connections_open_when_all_are_ready_and_close_after_the_report(run: Run) -> None:
    order: list[str] = []

    class Connection:
        def __init__(self) -> None:
            order.append("open")

        def close(self) -> None:
            order.append("close")

    def fails(exchange: Exchange) -> None:
        report = exchange.monitor.report

        def noted(error: KdclError) -> KdclError:
            order.append("report")
            return report(error)

        exchange.monitor.report = noted  # type: ignore[method-assign]
        raises(exchange)

    ready = {rank: lambda: order.append("ready") for rank in range(3)}
    run_ranks(run, {A: fails}, prepare=ready, connect={A: Connection})
    assert order == ["ready"] * 3 + ["open", "report", "close"]
