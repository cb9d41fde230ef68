"""How much a step of the cast costs over that of its slowest student, and against training in turn.

    python -m benchmarks.step_efficiency --out docs/results/step-efficiency.md

In one run, several rounds one after another, each of

    (a) every student alone, all at once on the same cores, without distillation;
    (b) the same students with kdcl (local launcher), coordinator and exchange included;
    (c) one process that trains all of them in turn with all cores, as public implementations do;

for casts of three sizes. The figures are medians over steps, then over rounds; compare ratios, not times.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from itertools import chain, count
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.in_turn import InTurn
from kdcl_dist.memory import keep_freed_memory
from kdcl_dist.metrics import ENSEMBLE, read_metrics
from kdcl_dist.recipe import Recipe
from kdcl_dist.recipe_file import load_recipe
from kdcl_dist.session import Session
from kdcl_dist.storage import Folder
from kdcl_dist.student import Student
from kdcl_dist.training import train

RECIPE = "examples/digits.yaml"
#: Each is two students on one core each; augmentation is left out, so that networks make up the step.
CASTS = {
    "small": ["students=[{name: one, model: cnn_medium}, {name: two, model: cnn_small}]", "batch_size=64"],
    "medium": ["students=[{name: one, model: cnn_large}, {name: two, model: cnn_medium}]", "batch_size=64"],
    "large": ["students=[{name: one, model: cnn_large}, {name: two, model: cnn_large}]", "batch_size=192"],
}
WARMUP_STEPS = 5


def alone(recipe: Recipe) -> float:
    """(a): median seconds of a step of the slowest student, all running at once, none knowing of another."""
    context = get_context("spawn")
    number = len(recipe.students)
    start, found, through = context.Barrier(number), context.SimpleQueue(), context.Value("i", 0)
    jobs = [
        context.Process(target=_alone, args=(recipe, index, start, found, through)) for index in range(number)
    ]
    for job in jobs:
        job.start()
    seconds = [found.get() for _ in jobs]
    for job in jobs:
        job.join()
    return float(max(seconds))


def _alone(recipe: Recipe, index: int, start: Any, found: Any, through: Any) -> None:
    """One student by itself; it goes on until the slowest is through, so that all cores stay in use."""
    torch.set_num_threads(recipe.students[index].resources.cpu)
    keep_freed_memory()
    session = Session.open(recipe)
    classes, channels = len(session.train.classes), session.train.channels
    student = Student(recipe, index, classes=classes, channels=channels, device=torch.device("cpu"))
    steps = session.plan.steps_per_epoch * recipe.epochs
    batches = chain.from_iterable(session.training(index, 0) for _ in count())
    seconds: list[float] = []
    start.wait()
    while through.value < len(recipe.students):
        began = time.perf_counter()
        batch = next(batches)
        loss = student.loss(student.forward(batch.images, len(seconds)), batch.labels, None).total
        student.learn(loss, student.spec.optimizer.lr)
        float(loss.detach())
        seconds.append(time.perf_counter() - began)
        if len(seconds) == steps:
            with through.get_lock():
                through.value += 1
    found.put(median(seconds[WARMUP_STEPS:steps]))


def together(recipe: Recipe) -> float:
    """(b): median seconds of a step of the cast, each process of which is on its own."""
    with tempfile.TemporaryDirectory() as storage:
        result = train(recipe, launcher="local", storage=storage)
        rows = read_metrics(Folder(result.path)).to_pylist()
    by_step: dict[int, float] = {}
    for row in rows:
        if row["name"] == "step_s" and row["student"] != ENSEMBLE:
            by_step[row["step"]] = max(row["value"], by_step.get(row["step"], 0.0))
    return median(list(by_step.values())[WARMUP_STEPS:])


def in_turn(recipe: Recipe) -> float:
    """(c): median seconds of a step of one process that trains all students."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_in_turn, (recipe,))


def _in_turn(recipe: Recipe) -> float:
    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()
    baseline = InTurn(recipe)
    steps = baseline.session.plan.steps_per_epoch * recipe.epochs
    return median([baseline.step(step) for step in range(steps)][WARMUP_STEPS:])


def measure(recipe: Recipe, rounds: int) -> tuple[float, float, float]:
    """Seconds a step of (a), (b) and (c): medians over rounds, which alternate between the three."""
    found = [(alone(recipe), together(recipe), in_turn(recipe)) for _ in range(rounds)]
    a, b, c = (median(column) for column in zip(*found, strict=True))
    return a, b, c


def report(measured: dict[str, tuple[Recipe, tuple[float, float, float]]], rounds: int, epochs: int) -> str:
    """The figures with their conditions, as Markdown."""
    lines = [
        "# What a step costs",
        "",
        "(a) each student alone, all at once on the same cores, the slowest; (b) the same students with",
        "kdcl, local launcher; (c) one process that trains all in turn with all cores. Medians.",
        f"{os.cpu_count()} cores ({platform.machine()}), no GPU, PyTorch {torch.__version__}; digits 8x8, no",
        f"augmentation, method `{next(iter(measured.values()))[0].distillation.method}`, {rounds} rounds of",
        f"{epochs} epochs. Made by `python -m benchmarks.step_efficiency`.",
        "",
        "| students | batch | (a) ms | (b) ms | (c) ms | (b) / max(a) | (c) / (b) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for recipe, (a, b, c) in measured.values():
        names = " + ".join(student.model for student in recipe.students)
        times = " | ".join(f"{1000 * value:.1f}" for value in (a, b, c))
        lines.append(f"| {names} | {recipe.batch_size} | {times} | {b / a:.2f} | {c / b:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all casts, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--method", default="linear")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured = {}
    for name, overrides in CASTS.items():
        recipe = load_recipe(RECIPE, [*overrides, *_common(arguments)])
        measured[name] = recipe, measure(recipe, arguments.rounds)
        print(f"{name}: {[round(1000 * value, 1) for value in measured[name][1]]} ms", flush=True)
    table = report(measured, arguments.rounds, arguments.epochs)
    print(table)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(table)


def _common(arguments: argparse.Namespace) -> Sequence[str]:
    return (
        "data.augment=[]",
        f"epochs={arguments.epochs}",
        f"checkpoint.every_epochs={arguments.epochs}",
        f"distillation.method={arguments.method}",
    )


if __name__ == "__main__":
    main()
