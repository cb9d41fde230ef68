"""Measuring the shared parts of a step: the exchange of messages, and the ensemble."""

from __future__ import annotations

import time
from statistics import median

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.logit_bank import LogitBank
from kdcl_dist.distillation.solving import set_threads
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import Contribution, Message, MessageLayout
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import connect_store, host_store, scoped
from kdcl_dist.planning.processes import STEPS, WARMUP_STEPS, run_in_processes, time_steps
from kdcl_dist.planning.step_model import Link, fit_link

__all__ = ["measure_ensemble", "measure_link"]

HOST = "127.0.0.1"
#: Seconds for the processes of an exchange to connect, and for one of its steps.
LIMIT_S = 60.0
#: Two sizes of message (rows, classes): a tiny one that measures latency, and one of about a megabyte.
SMALL, LARGE = MessageLayout(1, 1), MessageLayout(4096, 64)


def measure_link(recipe: Recipe) -> Link:
    """Latency and bandwidth of this machine's loopback, between as many processes as the run has."""
    workers = len(recipe.workers)
    store, endpoint = host_store(HOST)
    ranks = [(endpoint, rank, workers) for rank in range(workers + 1)]
    by_rank = run_in_processes(_exchange, ranks)
    del store
    sizes = [(layout.nbytes, layout.nbytes) for layout in (SMALL, LARGE)]
    slowest_s = [max(seconds) for seconds in zip(*by_rank, strict=True)]
    return fit_link(workers, [(*size, seconds) for size, seconds in zip(sizes, slowest_s, strict=True)])


def measure_ensemble(recipe: Recipe, classes: int) -> float:
    """Seconds in which the coordinator aligns a step's logits (here random) and forms the ensemble.

    Of several coordinators that share a step's samples, the seconds of one.
    """
    return run_in_processes(_ensemble, [(recipe, classes)])[0]


# -- in the processes ----------------------------------------------------------------------------


def _exchange(endpoint: Endpoint, rank: int, workers: int) -> list[float]:
    """Median seconds of one rank's gather and broadcast, for messages of either size."""
    torch.set_num_threads(1)
    store, found = connect_store(endpoint, LIMIT_S), []
    for generation, layout in enumerate((SMALL, LARGE)):
        part = scoped(store, f"planning/{generation}")
        exchange = Exchange(
            Monitor(part, [str(number) for number in range(workers)], rank),
            part,
            host=HOST,
            layout=ExchangeLayout(layout, layout),
            run=0,
            generation=generation,
            step_s=LIMIT_S,
        )
        # No time budget: all ranks must take the same number of steps.
        seconds = [_round_trip(exchange, step) for step in range(WARMUP_STEPS + STEPS)]
        exchange.flush()
        exchange.close()
        found.append(median(seconds[WARMUP_STEPS:]))
    return found


def _round_trip(exchange: Exchange, step: int) -> float:
    exchange.outgoing.reset(Kind.TRAIN, step)
    started = time.perf_counter()
    exchange.gather()
    exchange.answer.reset(Kind.TRAIN, step)
    exchange.broadcast(with_rows=True)
    return time.perf_counter() - started


def _ensemble(recipe: Recipe, classes: int) -> float:
    torch.set_num_threads(1)
    distillation, students = recipe.distillation, len(recipe.students)
    rows = -(-recipe.part_size // recipe.coordinators)
    set_threads(distillation.threads)
    bank = None
    if distillation.keeps_logits:  # a small one: its time does not depend on the number of samples
        bank = LogitBank(students, 2 * rows, classes, top_k=distillation.bank.top_k)
    coordinator, answer = Aggregator(recipe, bank), Message(ExchangeLayout.of(recipe, classes).answer)
    coordinator.load_method(classes)
    labels_N = torch.randint(classes, (2 * rows,))

    def step(number: int) -> float:
        """Seconds of one ensemble."""
        drawn = [torch.randperm(2 * rows if bank else rows)[:rows] for _ in recipe.networks]
        drawn += drawn[:1] * len(recipe.stored)  # which have logits of the others' samples
        parts = [Contribution(ids_B, labels_N[ids_B], torch.randn(rows, classes)) for ids_B in drawn]
        started = time.perf_counter()
        if (target := coordinator.answer(parts, number).target) is not None:
            answer.write_rows(target.ids, target.log_probabilities)
        return time.perf_counter() - started

    return float(median(time_steps(step)))
