"""Cost of steps that are computed twice, in processor time: that of other processes does not count.

    python -m benchmarks.verification --out docs/results/verification.md

A student of the digits takes steps with a random soft target, without an exchange. Every second step is
computed twice. The cost at another interval is the extra time of such a step, and of the step before, which
keeps its state, divided by that interval.
"""

from __future__ import annotations

import argparse
import time
import timeit
from pathlib import Path
from statistics import median

import torch

from benchmarks.conditions import conditions
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.distillation.methods import Context
from kdcl_dist.exchange.checksum import is_intact, write_checksum
from kdcl_dist.exchange.message import Message, MessageLayout
from kdcl_dist.student.step_part import StepPart
from kdcl_dist.student.step_tape import Lesson
from kdcl_dist.student.student import Student
from kdcl_dist.student.verification import Verification

RECIPE, CLASSES, RECOMMENDED, WARMUP_STEPS = "examples/digits.yaml", 10, 1000, 6
CASES = [("mlp", 64), ("cnn_small", 64), ("cnn_medium", 64), ("cnn_large", 64), ("cnn_large", 256)]


def seconds(model: str, batch: int, every: int, steps: int) -> list[float]:
    """Processor seconds of each step of a student that computes one in `every` twice; 0: none."""
    overrides = [f"students=[{{name: a, model: {model}}}]", f"failure.verify_every_steps={every}"]
    recipe = load_recipe(RECIPE, [*overrides, f"batch_size={batch}"])
    student = Student(recipe, 0, classes=CLASSES, channels=1, device=torch.device("cpu"))
    schedule = RunSchedule(1, steps + 1, holdout_batches=0, test_batches=1, checkpoint_epochs=1)
    verification, sent = Verification(student, schedule), Message(MessageLayout(batch, CLASSES))
    images, labels = torch.randn(batch, 1, 8, 8), torch.arange(batch) % CLASSES
    lesson = Lesson(labels, torch.log_softmax(torch.randn(batch, CLASSES), 1), None, Context())
    found = []
    for step in range(steps):
        began, round = time.process_time(), Round(Kind.TRAIN, 0, step)
        verification.begin(round, images, learns=True)
        logits_BC = student.forward(images, step)
        sent.write_rows(torch.arange(batch), student.contribution(logits_BC, step), labels)
        verification.keep(lesson)
        losses = student.loss(logits_BC, *lesson)
        skipped = student.learn(losses.total, student.lr(step, schedule.steps_per_epoch))
        verification.end(round, logits_BC, sent, StepPart.of({}, losses, skipped))
        found.append(time.process_time() - began)
    return found[WARMUP_STEPS:]


def checksum_us(rows: int = 128, classes: int = 100) -> tuple[float, int]:
    """Microseconds for the checksum of a message of this size, written and checked, and its bytes."""
    message = Message(MessageLayout(rows, classes))

    def work() -> None:
        write_checksum(message, message.buffer)
        assert is_intact(message.buffer)

    return 1e6 * min(timeit.repeat(work, number=1000, repeat=5)) / 1000, message.layout.nbytes


def main() -> None:
    """Measure all cases, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for model, batch in CASES:
        plain = median(seconds(model, batch, 0, arguments.steps))
        verified = seconds(model, batch, 2, arguments.steps)
        before, twice = median(verified[::2]), median(verified[1::2])
        extra = (before + twice - 2 * plain) / plain
        times = " | ".join(f"{1000 * each:.2f}" for each in (plain, before, twice))
        rows.append(f"| {model} | {batch} | {times} | {extra:.2f} | {extra / RECOMMENDED:.2%} |")
        print(rows[-1], flush=True)
    micros, size = checksum_us()
    how = f"Medians of {arguments.steps} steps, one thread, without exchange; milliseconds of processor time"
    lines = [
        "# Cost of steps that are computed twice",
        "",
        "A student's step without `failure.verify_every_steps`; the step before one that is computed twice,",
        "which keeps its state; and that one. The last columns: what both cost more, in steps, and at one in",
        f"{RECOMMENDED}.",
        "",
        "| student | batch | step ms | step before ms | twice ms | extra steps | cost |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"The checksum of a message of {size:,} bytes takes {micros:.0f} us to write and to check.",
        "",
        *conditions("verification", how),
    ]
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
