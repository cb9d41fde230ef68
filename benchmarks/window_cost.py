"""Cost of a window: the bank, the soft target, the wider answer, and a checkpoint.

    python -m benchmarks.window_cost --out docs/results/window-cost.md

The time of a computation is the processor time of its thread, on which other work of the machine has little
effect. Each round measures all sides of a comparison.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.rounds import Kind
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.logit_bank import LogitBank
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import Contribution, MessageLayout
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import connect_store, host_store, scoped
from kdcl_dist.planning.processes import run_in_processes
from kdcl_dist.run.checkpoint import write_part
from kdcl_dist.run.storage import Folder

ROUNDS = 40
LIMIT_S = 60.0
#: Students, samples of a step, classes.
SIZES = ((3, 64, 10), (2, 128, 100), (4, 256, 1000))


def alternate(clock: Callable[[], float], *works: Callable[[int], object]) -> list[float]:
    """Median seconds of each work by a clock; every round calls all works, and the first fifth warms up."""
    found: list[list[float]] = [[] for _ in works]
    for number in range(ROUNDS):
        for own, work in zip(found, works, strict=True):
            began = clock()
            work(number)
            own.append(clock() - began)
    return [median(own[ROUNDS // 5 :]) for own in found]


def lookups() -> list[str]:
    """The bank's part of a step, for data sets of different sizes."""
    students, rows, classes = 2, 128, 100
    samples = (1_000, 10_000, 100_000, 1_000_000)
    lines = ["| samples | memory ms | of the smallest | file ms | of the smallest |", "| ---: " * 5 + "|"]
    logits_BC = torch.randn(rows, classes)

    def step(bank: LogitBank) -> Callable[[int], object]:
        drawn = [torch.randint(bank.samples, (rows,)) for _ in range(ROUNDS)]

        def work(number: int) -> object:
            for student in range(students):
                bank.put(student, drawn[number], logits_BC, number)
            return bank.latest(drawn[number], number)

        return work

    with tempfile.TemporaryDirectory() as folder:
        banks = [LogitBank(students, n, classes, folder=path) for path in (None, folder) for n in samples]
        for bank in banks:  # the first write of a page is slower than later ones
            for array in bank.fields.values():
                array.fill(0)
        seconds = alternate(time.thread_time, *map(step, banks))
        for bank in banks:
            bank.close()
    memory, file = seconds[: len(samples)], seconds[len(samples) :]
    for n, own, mapped in zip(samples, memory, file, strict=True):
        ratios = own / memory[0], mapped / file[0]
        lines.append(f"| {n:,} | {1e3 * own:.2f} | {ratios[0]:.2f} | {1e3 * mapped:.2f} | {ratios[1]:.2f} |")
    return lines


def targets() -> list[str]:
    """The coordinator's part of a step: the same samples, and different samples of a full bank."""
    lines = ["| students | batch | classes | window 1 ms | window ms | ratio |", "| ---: " * 6 + "|"]
    for students, rows, classes in SIZES:
        cohort = ", ".join(f"{{name: s{i}, model: mlp}}" for i in range(students))
        recipe = parse_recipe(f"data: {{train: x, test: x}}\nstudents: [{cohort}]")
        samples = 8 * rows
        labels_N = torch.randint(classes, (samples,))
        bank = LogitBank(students, samples, classes)
        for student in range(students):
            bank.put(student, torch.arange(samples), 3 * torch.randn(samples, classes), 0)
        shared = [torch.arange(rows)] * students
        own = [torch.randperm(samples)[:rows] for _ in range(students)]
        logits = [3 * torch.randn(rows, classes) for _ in range(students)]
        parts = [
            [Contribution(ids, labels_N[ids], z) for ids, z in zip(drawn, logits, strict=True)]
            for drawn in (shared, own)
        ]
        one, windowed = Aggregator(recipe), Aggregator(recipe, bank)

        def plain(number: int, one: Aggregator = one, parts: list[Contribution] = parts[0]) -> object:
            return one.answer(parts, number)

        def windowed_answer(
            number: int, other: Aggregator = windowed, parts: list[Contribution] = parts[1]
        ) -> object:
            return other.answer(parts, number)

        before, after = alternate(time.thread_time, plain, windowed_answer)
        ms = f"{1e3 * before:.2f} | {1e3 * after:.2f} | {after / before:.1f}"
        lines.append(f"| {students} | {rows} | {classes} | {ms} |")
    return lines


def exchanges() -> list[str]:
    """Gather and broadcast with an answer of one batch's rows, and of all students' rows."""
    lines = [
        "| students | batch | classes | answer KB, window 1 | more | ms, window 1 | ms | ratio |",
        "| ---: " * 8 + "|",
    ]
    for students, rows, classes in SIZES:
        store, endpoint = host_store("127.0.0.1")
        ranks = [(endpoint, rank, students, rows, classes) for rank in range(students + 1)]
        by_rank = run_in_processes(_exchange, ranks)
        del store
        before, after = (max(seconds) for seconds in zip(*by_rank, strict=True))
        sizes = [MessageLayout(k * rows, classes).nbytes / 1e3 for k in (1, students)]
        ms = f"{1e3 * before:.2f} | {1e3 * after:.2f} | {after / before:.2f}"
        lines.append(f"| {students} | {rows} | {classes} | {sizes[0]:,.0f} | {sizes[1]:,.0f} | {ms} |")
    return lines


def _exchange(endpoint: Endpoint, rank: int, students: int, rows: int, classes: int) -> list[float]:
    torch.set_num_threads(1)
    store = connect_store(endpoint, LIMIT_S)
    both = []
    for generation, answer_rows in enumerate((rows, students * rows)):
        part = scoped(store, f"cost/{generation}")
        both.append(
            Exchange(
                Monitor(part, [str(number) for number in range(students)], rank),
                part,
                host="127.0.0.1",
                layout=ExchangeLayout(MessageLayout(rows, classes), MessageLayout(answer_rows, classes)),
                run=0,
                generation=generation,
                step_s=LIMIT_S,
            )
        )

    def round_trip(exchange: Exchange) -> Callable[[int], object]:
        def work(step: int) -> object:
            exchange.outgoing.reset(Kind.TRAIN, step)
            exchange.gather()
            exchange.answer.reset(Kind.TRAIN, step)
            return exchange.broadcast(with_rows=True)

        return work

    found = alternate(time.perf_counter, *map(round_trip, both))
    for exchange in both:
        exchange.flush()
        exchange.close()
    return found


def checkpoint() -> list[str]:
    """A write of a full bank, part by part, to this machine's disk."""
    students, samples, classes = 2, 50_000, 1000
    bank = LogitBank(students, samples, classes)
    for student in range(students):
        for start in range(0, samples, 5_000):
            ids_B = torch.arange(start, start + 5_000)
            bank.put(student, ids_B, torch.randn(5_000, classes), start)
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(path)
        began = time.thread_time()
        written = sum(write_part(folder, 1, name, part).bytes for name, part in bank.parts(samples))
        seconds = time.thread_time() - began
    return [
        f"A full bank of {students} students, {samples:,} samples and {classes:,} classes is "
        f"{written / 1e6:.0f} MB in a checkpoint: {seconds:.1f} s of processor time, the hashes included."
    ]


def main() -> None:
    """Measure everything and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Cost of a window",
        "",
        f"{os.cpu_count()} cores, PyTorch {torch.__version__}, one thread; load average of the machine",
        f"at the beginning: {os.getloadavg()[0]:.1f}. Medians of {ROUNDS - ROUNDS // 5} alternating rounds;",
        "processor time for all but the exchange.",
        "Made by `python -m benchmarks.window_cost`.",
        "",
    ]
    for title, work in (
        ("The bank: 2 students store 128 samples of 100 classes, and 128 are looked up", lookups),
        ("The coordinator: from the logits to the soft target (`linear`)", targets),
        ("The exchange: gather and broadcast on the loopback", exchanges),
        ("A checkpoint", checkpoint),
    ):
        lines += [f"## {title}", "", *work(), ""]
        print("\n".join(lines[-4:]), flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
