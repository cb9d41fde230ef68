"""Cost of steps that are computed twice: against the other steps of the same run.

    python -m benchmarks.verification --out docs/results/verification.md

Every tenth step is computed twice, which gives enough steps of both kinds. The cost at another interval is
the extra time of such a step, and of the step before, which keeps its state, divided by that interval.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import timeit
from pathlib import Path
from statistics import median

import torch

from benchmarks.step_efficiency import COHORTS, WARMUP_STEPS, recipe_of, seconds_by_step
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.sections import Failure
from kdcl_dist.exchange.checksum import is_intact, write_checksum
from kdcl_dist.exchange.message import Message, MessageLayout
from kdcl_dist.training import train

EVERY, RECOMMENDED = 10, 1000


def measure(recipe: Recipe) -> tuple[float, float, float]:
    """Median seconds of a step that is computed twice, of the step before it, and of another step."""
    recipe = recipe.model_copy(update={"failure": Failure(verify_every_steps=EVERY)})
    with tempfile.TemporaryDirectory() as storage:
        by_step = seconds_by_step(train(recipe, launcher="local", storage=storage).path)
    kinds: list[list[float]] = [[], [], []]
    for step, seconds in by_step.items():
        if step >= WARMUP_STEPS:
            kinds[min((-step - 1) % EVERY, 2)].append(seconds)
    twice, before, others = map(median, kinds)
    return twice, before, others


def checksum_us(rows: int = 128, classes: int = 100) -> tuple[float, int]:
    """Microseconds for the checksum of a message of this size, written and checked, and its bytes."""
    message = Message(MessageLayout(rows, classes))

    def work() -> None:
        write_checksum(message, message.buffer)
        is_intact(message.buffer)

    return 1e6 * min(timeit.repeat(work, number=1000, repeat=5)) / 1000, message.layout.nbytes


def main() -> None:
    """Measure all cohorts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    micros, size = checksum_us()
    lines = [
        "# Cost of steps that are computed twice",
        "",
        f"Median ms of a step. Each row is one run with `failure.verify_every_steps: {EVERY}`: a step that",
        "is computed twice, the step before it, which keeps its state, and another step. The cost is their",
        f"extra time in every {RECOMMENDED} steps.",
        "",
        f"The checksum of a message of {size:,} bytes takes {micros:.0f} us to write and to check.",
        "",
        f"{os.cpu_count()} cores, PyTorch {torch.__version__}, digits, no augmentation, local launcher, load",
        f"average at the end {os.getloadavg()[0]:.1f}. Made by `python -m benchmarks.verification`.",
        "",
        "| students | batch | twice ms | before ms | others ms | cost |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cohort in COHORTS:
        recipe = recipe_of(cohort, arguments.epochs)
        twice, before, others = measure(recipe)
        cost = (twice + before - 2 * others) / (RECOMMENDED * others)
        names = " + ".join(str(student.model) for student in recipe.students)
        times = " | ".join(f"{1000 * seconds:.1f}" for seconds in (twice, before, others))
        lines.append(f"| {names} | {recipe.batch_size} | {times} | {cost:.2%} |")
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
