"""Cost of a step's exchange relative to gloo's own all-gather and broadcast of the same bytes.

    python -m benchmarks.exchange --out docs/results/exchange.md

Students and coordinator are processes of this machine that exchange messages over its loopback. Each round
times all arms: (a) gloo's all_gather and broadcast of plain tensors; (b) the exchange as a star, for all
methods but `dml`; (c) the exchange as all-gather and broadcast, for `dml`; (d) gloo's gather and broadcast, a
rejected alternative; (e) the star with 16-bit logits. (b), (c) and (e) include writing the logits into the
message and checking the headers. The time of a round is that of the slowest student.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.conditions import conditions
from benchmarks.figures import Figure
from kdcl_dist.config.rounds import Kind
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import MessageLayout
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import connect_store, host_store, scoped
from kdcl_dist.planning.processes import run_in_processes

HOST, LIMIT_S = "127.0.0.1", 60.0
BATCH = 128
SIZES = [(students, classes) for students in (2, 4, 8) for classes in (10, 100, 1000)]
ARMS = ("gloo", "star", "all to all", "gather", "star, 16 bits")
GOAL = 1.3
#: Steps of one arm in one round.
STEPS = 5
Work = Callable[[int], object]


def measure(students: int, classes: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each arm."""
    store, endpoint = host_store(HOST)
    by_rank = run_in_processes(
        _rank, [(endpoint, rank, students, classes, rounds) for rank in range(students + 1)]
    )
    del store
    # The time of a step is that of the slowest student.
    rounds_of = [[max(times) for times in zip(*arm, strict=True)] for arm in zip(*by_rank[:-1], strict=True)]
    return {name: median(found) for name, found in zip(ARMS, rounds_of, strict=True)}


def _rank(endpoint: Endpoint, rank: int, students: int, classes: int, rounds: int) -> list[list[float]]:
    """Seconds of a step by arm and round."""
    torch.set_num_threads(1)
    store = connect_store(endpoint, LIMIT_S)
    full, half = MessageLayout(BATCH, classes), MessageLayout(BATCH, classes, torch.float16)
    layouts = {
        "star": ExchangeLayout(full, full),
        "all to all": ExchangeLayout(full, full, True),
        "star, 16 bits": ExchangeLayout(half, half),
    }
    exchanges = {
        name: _exchange(store, number, rank, students, layout)
        for number, (name, layout) in enumerate(layouts.items())
    }
    bare = _exchange(store, len(layouts), rank, students, layouts["star"])
    works: dict[str, Work] = {name: _round_trip(exchange) for name, exchange in exchanges.items()}
    works |= {"gloo": _gloo(bare, all_gather=True), "gather": _gloo(bare, all_gather=False)}
    found: list[list[float]] = [[] for _ in ARMS]
    for number in range(rounds + 1):
        for times, name in zip(found, ARMS, strict=True):
            works["gloo"](0)  # all ranks begin together
            began = perf_counter()
            for step in range(STEPS):
                works[name](number * STEPS + step)
            times.append((perf_counter() - began) / STEPS)
    for exchange in (*exchanges.values(), bare):
        exchange.flush()
        exchange.close()
    return [times[1:] for times in found]


def _exchange(store: Any, number: int, rank: int, students: int, layout: ExchangeLayout) -> Exchange:
    part = scoped(store, str(number))
    monitor = Monitor(part, [str(index) for index in range(students)], rank)
    return Exchange(monitor, part, host=HOST, layout=layout, run=0, generation=number, step_s=LIMIT_S)


def _round_trip(exchange: Exchange) -> Work:
    """A step of a run without its computation."""
    layout = exchange.outgoing.layout
    ids_B, logits_BC = torch.arange(layout.rows), torch.randn(layout.rows, layout.classes)
    is_coordinator = exchange.monitor.is_coordinator

    def work(step: int) -> None:
        exchange.outgoing.reset(Kind.TRAIN, step)
        if not is_coordinator:
            exchange.outgoing.write_rows(ids_B, logits_BC, ids_B)
        exchange.gather()
        exchange.answer.reset(Kind.TRAIN, step)
        if is_coordinator:
            exchange.answer.write_rows(ids_B, logits_BC)
        exchange.broadcast(with_rows=True)

    return work


def _gloo(exchange: Exchange, *, all_gather: bool) -> Work:
    """A step of gloo alone, on the group of an exchange."""
    outgoing, answer, root = exchange.outgoing.buffer, exchange.answer.buffer, exchange.root
    parts = [torch.empty_like(outgoing) for _ in range(exchange.size)]
    listed = parts if exchange.rank == root else None
    gather: Callable[..., Any] = partial(dist.all_gather, parts, outgoing)
    if not all_gather:
        gather = partial(dist.gather, outgoing, listed, group_dst=root)

    def work(step: int) -> None:
        group: Any = exchange._group
        gather(group=group, async_op=True).wait()
        broadcast: Any = dist.broadcast(answer, group_src=root, group=group, async_op=True)
        broadcast.wait()

    return work


def figures(quick: bool = False) -> list[Figure]:
    """Star and all-gather relative to gloo's own, for each size."""
    sizes, rounds = ([(2, 100)], 10) if quick else ([(2, 10), (2, 1000), (8, 10), (8, 1000)], 20)
    found = []
    for students, classes in sizes:
        seconds = measure(students, classes, rounds)
        for arm in ("star", "all to all"):
            what = f"{arm}, S={students}, C={classes}, over gloo's all_gather + broadcast"
            found.append(Figure("exchange", what, seconds[arm] / seconds["gloo"], GOAL))
    return found


def main() -> None:
    """Measure all sizes, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# The exchange of a step",
        "",
        *conditions(
            "exchange", f"{arguments.rounds} alternating rounds of {STEPS} steps, medians; B = {BATCH}"
        ),
        "",
        "(a) gloo's all_gather and broadcast of the same bytes; (b) the star; (c) all-gather, for `dml`;",
        "(d) gloo's gather and broadcast; (e) the star with 16-bit logits. Milliseconds, and ratios to (a).",
        "",
        "| S | C | KB | (a) ms | (b) ms | (b)/(a) | (c)/(a) | (d)/(a) | (e)/(a) |",
        "| ---: " * 9 + "|",
    ]
    print("\n".join(lines), flush=True)
    for students, classes in SIZES:
        seconds = measure(students, classes, arguments.rounds)
        base = seconds["gloo"]
        ratios = " | ".join(f"{seconds[name] / base:.2f}" for name in ARMS[1:])
        kilobytes = MessageLayout(BATCH, classes).nbytes / 1e3
        ms = f"{1e3 * base:.2f} | {1e3 * seconds['star']:.2f}"
        lines.append(f"| {students} | {classes} | {kilobytes:,.0f} | {ms} | {ratios} |")
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
