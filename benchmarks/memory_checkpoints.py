"""Cost of checkpoints in memory, in processor time: that of other processes does not count.

    python -m benchmarks.memory_checkpoints --out docs/results/memory-checkpoints.md

A student of the digits takes steps with a random soft target, without an exchange, and keeps its state in
memory. The store to which it sends the state is in this process: its time counts too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.conditions import conditions
from benchmarks.verification import CASES, CLASSES, RECIPE, seconds
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.membership.tcp_store import connect_store, host_store, shelf_of
from kdcl_dist.student.keeper import StateKeeper, on_host
from kdcl_dist.student.student import Student

#: Steps from one checkpoint to the next, for which the page shows the cost.
EVERY = 100


def trained(model: str) -> Student:
    """A student after a step, with the state of its optimiser."""
    recipe = load_recipe(RECIPE, [f"students=[{{name: a, model: {model}}}]"])
    student = Student(recipe, 0, classes=CLASSES, channels=1, device=torch.device("cpu"))
    student.learn(student.forward(torch.rand(64, 1, 8, 8), 0).square().mean(), 0.1)
    return student


def median_ms(work: Callable[[], object], rounds: int) -> float:
    """Median processor milliseconds of this process, all threads together."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append(1000 * (time.process_time() - began))
    return median(found)


def costs(model: str, rounds: int) -> tuple[float, float, float]:
    """Megabytes of a state, and milliseconds to copy it, and to copy, write, send and receive it."""
    student, (hosted, endpoint) = trained(model), host_store("127.0.0.1")
    shelf_of(hosted).retain("0/1")
    monitor: Any = SimpleNamespace()  # of a process that fetches no state
    keeper = StateKeeper(connect_store(endpoint, 60.0), monitor, "a", 60.0)

    def keep() -> None:
        keeper.keep("0/1", student)
        keeper.close()

    copy_ms = median_ms(lambda: on_host(student.state_dict()), rounds)
    whole_ms = median_ms(keep, rounds)
    return len(keeper.states["0/1"]) / 1e6, copy_ms, whole_ms


def main() -> None:
    """Measure all cases, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for model, batch in CASES:
        step_ms = 1000 * median(seconds(model, batch, 0, given.rounds))
        size, copy_ms, whole_ms = costs(model, given.rounds)
        shares = f"{copy_ms / step_ms / EVERY:.3%} | {whole_ms / step_ms / EVERY:.2%}"
        rows.append(
            f"| {model} | {batch} | {step_ms:.2f} | {size:.2f} | {copy_ms:.2f} | {whole_ms:.2f} | {shares} |"
        )
        print(rows[-1], flush=True)
    how = f"Medians of {given.rounds} rounds, one thread, without exchange; milliseconds of processor time"
    lines = [
        "# Cost of checkpoints in memory",
        "",
        "A step waits until the student's state is copied. A thread writes and sends it, and the",
        "coordinator's process receives it: the columns `all` have both processes' time. The shares are of a",
        f"student's step, with `checkpoint.in_memory_every_steps: {EVERY}`.",
        "",
        "| student | batch | step ms | state MB | copy ms | all ms | a step waits | all |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        *conditions("memory_checkpoints", how),
    ]
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
