"""Several coordinators over links of a known rate: a training step's exchange, measured and predicted.

    unshare --net python -m benchmarks.coordinators --out docs/results/coordinators.md

The check needs root, ip, tc and nsenter; see `benchmarks.scale_network` for its hosts. Each of 8 students and
each coordinator has a host of its own. A step sends logits of 256 samples and 1000 classes, and soft targets
back. Nothing is fitted: the prediction is that of `kdcl_dist.planning.step_model`, with the rate of the links
and without a latency.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch

from benchmarks.conditions import conditions
from benchmarks.scale_network import MBIT, PAYLOAD, SWITCH, make_host, make_switch
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.rounds import Kind
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import MessageLayout
from kdcl_dist.exchange.shared import SharedExchange
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import connect_store, host_store, scoped
from kdcl_dist.planning.processes import run_in_processes
from kdcl_dist.planning.step_model import Link

STUDENTS, BATCH, CLASSES = 8, 256, 1000
COORDINATORS = (1, 2, 4)
ROUNDS, STEPS, LIMIT_S = 3, 4, 300.0
#: Bytes a second of logits that a link carries.
RATE = 1e6 * MBIT * PAYLOAD / 8


class Case(NamedTuple):
    """One line: coordinators, and the type of logits in messages."""

    coordinators: int
    precision: str

    @property
    def recipe(self) -> Recipe:
        """Of a cohort with these messages."""
        students = ", ".join(f"{{name: s{index}, model: mlp}}" for index in range(STUDENTS))
        return parse_recipe(
            f"data: {{train: none, test: none}}\nstudents: [{students}]\nbatch_size: {BATCH}\n"
            f"coordinators: {self.coordinators}\ndistillation: {{wire_precision: {self.precision}}}\n"
        )

    @property
    def predicted_s(self) -> float:
        """Seconds of the exchange."""
        layout = ExchangeLayout.of(self.recipe, CLASSES).message
        share = MessageLayout(BATCH // self.coordinators, CLASSES, layout.dtype).nbytes
        return Link(0.0, RATE).exchange_s(STUDENTS, share, share, self.coordinators)


CASES = [Case(count, precision) for precision in ("fp32", "fp16") for count in COORDINATORS]


def _measure(endpoint: Endpoint, process: int, hub: int) -> list[float]:
    """Median seconds of a step of each case; the first processes are coordinators."""
    torch.set_num_threads(1)
    host = make_host(process, hub)
    store, found = connect_store(endpoint, LIMIT_S), []
    for number, case in enumerate(CASES):
        part = scoped(store, str(number))
        if not case.coordinators <= process < max(COORDINATORS):
            exchange = _exchange(case, part, host, process)
            found.append(median(_timed(exchange) for _ in range(ROUNDS)))
            exchange.flush()
            exchange.close()
        part.set(f"done/{process}", "")
        part.wait([f"done/{other}" for other in range(max(COORDINATORS) + STUDENTS)])
    return found


def _exchange(case: Case, store: object, host: str, process: int) -> Exchange:
    recipe, most = case.recipe, max(COORDINATORS)
    last = len(recipe.members)
    rank = process - most if process >= most else STUDENTS + process - 1 if process else last
    monitor = Monitor(store, recipe.members, rank)  # type: ignore[arg-type]
    options = {
        "host": host,
        "layout": ExchangeLayout.of(recipe, CLASSES),
        "run": 0,
        "generation": 0,
        "step_s": LIMIT_S,
    }
    if case.coordinators == 1:
        return Exchange(monitor, store, **options)  # type: ignore[arg-type]
    return SharedExchange(monitor, store, recipe=recipe, assistants=case.coordinators - 1, **options)  # type: ignore[arg-type]


def _timed(exchange: Exchange) -> float:
    """Seconds of a step, from the first message that leaves to the last answer that arrives."""
    _step(exchange, 0)  # all ranks begin together
    began = perf_counter()
    for number in range(1, STEPS + 1):
        _step(exchange, number)
    return (perf_counter() - began) / STEPS


def _step(exchange: Exchange, number: int) -> None:
    exchange.outgoing.reset(Kind.TRAIN, number)
    answers = exchange.rank >= exchange.workers
    if not answers:
        ids = torch.randperm(BATCH)
        exchange.outgoing.write_rows(ids, torch.zeros(BATCH, CLASSES), ids)
    exchange.gather()
    if answers:
        rows = exchange.answer.layout.rows
        exchange.answer.reset(Kind.TRAIN, number)
        exchange.answer.write_rows(torch.arange(rows), torch.zeros(rows, CLASSES))
    else:
        exchange.post_receive(with_rows=True)
    exchange.broadcast(with_rows=True)


def main() -> None:
    """Measure, compare, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    make_switch()
    store, endpoint = host_store(SWITCH)
    processes = range(max(COORDINATORS) + STUDENTS)
    measured = run_in_processes(_measure, [(endpoint, process, os.getpid()) for process in processes])
    del store
    sizes = f"{STUDENTS} students, B = {BATCH}, C = {CLASSES}"
    how = f"{sizes}; {MBIT} Mbit/s a link each way; medians of {ROUNDS}"
    lines = [
        "# Several coordinators over links of a known rate",
        "",
        *conditions("coordinators", f"{how} times {STEPS} steps, as a student sees them"),
        "",
        "| logits | coordinators | measured ms | predicted ms | ratio | times as fast as one |",
        "| --- " + "| ---: " * 5 + "|",
    ]
    seconds = dict(zip(CASES, measured[-1], strict=True))
    for case, measured_s in seconds.items():
        faster = seconds[Case(1, case.precision)] / measured_s
        times = f"{1e3 * measured_s:.1f} | {1e3 * case.predicted_s:.1f} | {measured_s / case.predicted_s:.2f}"
        lines.append(f"| {case.precision} | {case.coordinators} | {times} | {faster:.2f} |")
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
