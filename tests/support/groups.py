"""Exchange groups over real gloo, whose ranks are threads of the test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from together import at_once

from kdcl_dist.config.rounds import Kind
from kdcl_dist.errors import KdclError
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import MessageLayout
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import connect_store, host_store, scoped

Together = Callable[..., list[Any]]
NAMES = ["a", "b", "c"]
RUN = 2**63 + 5


def run_group(
    work: Callable[[Exchange], Any], step_s: float = 60.0, layout: ExchangeLayout | None = None
) -> list[Any]:
    """The results or errors of `work` on three students and the coordinator, by rank."""
    layout = layout or small_layout(all_to_all=False)
    server, endpoint = host_store("127.0.0.1")
    results: list[Any] = [None] * 4

    def worker(rank: int) -> None:
        store = scoped(server if rank == 3 else connect_store(endpoint, 10), "run")
        monitor = Monitor(store, NAMES, rank)
        monitor.start_heartbeat("127.0.0.1", slow_s=step_s / 2)
        try:
            exchange = Exchange(
                monitor,
                store,
                host="127.0.0.1",
                layout=layout,
                run=RUN,
                generation=0,
                step_s=step_s,
            )
            with closing(exchange):
                results[rank] = work(exchange)
                exchange.flush()
        except KdclError as error:
            results[rank] = error
        finally:
            monitor.close()

    at_once(worker, 4)
    return results


def small_layout(all_to_all: bool) -> ExchangeLayout:
    """Messages of at most 8 rows of 3 classes, in a star or a ring."""
    return ExchangeLayout(MessageLayout(8, 3), MessageLayout(8, 3), all_to_all)


def exchange_step(exchange: Exchange, number: int) -> tuple[list[int], float]:
    """One step; returns the senders that this rank reads, and the sum of the answer."""
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
