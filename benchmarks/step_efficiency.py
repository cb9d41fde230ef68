"""Cost of a step of the cohort relative to that of its slowest student, and to training in turn.

    python -m benchmarks.step_efficiency --out docs/results/step-efficiency.md

Each round measures

    (a) every student alone, all at the same time on the same cores, without distillation;
    (b) the same students with kdcl (local launcher), coordinator and exchange included;
    (c) one process that trains all students in turn with all cores, as public implementations do;

for cohorts of several sizes. The figures are medians over steps, then over rounds; compare ratios, not times.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from itertools import chain, count
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.conditions import conditions
from benchmarks.figures import Figure
from benchmarks.in_turn import InTurn
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.run.metrics import ENSEMBLE, read_metrics
from kdcl_dist.run.storage import Folder
from kdcl_dist.student.student import Student
from kdcl_dist.training import train
from kdcl_dist.utils.process import keep_freed_memory

RECIPE = "examples/digits.yaml"
#: Two students on one core each, the batch, and the goal of (b) / max(a) if steps of this length have one.
#: Without augmentation the networks dominate the step.
COHORTS: dict[str, tuple[tuple[str, str], int, float | None]] = {
    "10 ms": (("cnn_medium", "cnn_small"), 64, None),
    "20 ms": (("cnn_medium", "cnn_medium"), 160, 1.2),
    "30 ms": (("cnn_large", "cnn_medium"), 64, 1.2),
    "100 ms": (("cnn_large", "cnn_large"), 256, 1.05),
}
WARMUP_STEPS = 5


def alone(recipe: Recipe, kind: str = "cpu") -> float:
    """(a): median seconds of a step of the slowest student; all students run at once, without exchange.

    Args:
        recipe: recipe of the cohort.
        kind: type of the device, which all students share.
    """
    context = get_context("spawn")
    number = len(recipe.students)
    start, found, finished = context.Barrier(number), context.SimpleQueue(), context.Value("i", 0)
    jobs = [
        context.Process(target=_alone, args=(recipe, index, kind, start, found, finished))
        for index in range(number)
    ]
    for job in jobs:
        job.start()
    seconds = [found.get() for _ in jobs]
    for job in jobs:
        job.join()
    return float(max(seconds))


def _alone(recipe: Recipe, index: int, kind: str, start: Any, found: Any, finished: Any) -> None:
    """Train one student alone until the slowest one has finished, which keeps all cores in use."""
    torch.set_num_threads(recipe.students[index].resources.cpu)
    keep_freed_memory()
    training_data = TrainingData.open(recipe)
    classes, channels = len(training_data.train.classes), training_data.channels
    student = Student(recipe, index, classes=classes, channels=channels, device=torch.device(kind))
    steps = training_data.schedule.steps_per_epoch * recipe.epochs
    batches = chain.from_iterable(training_data.training_batches(index, 0) for _ in count())
    seconds: list[float] = []
    start.wait()
    while finished.value < len(recipe.students):
        began = time.perf_counter()
        batch = next(batches)
        loss = student.loss(student.forward(batch.inputs, len(seconds)), batch.labels, None).total
        student.learn(loss, student.spec.optimizer.lr)
        float(loss.detach())
        seconds.append(time.perf_counter() - began)
        if len(seconds) == steps:
            with finished.get_lock():
                finished.value += 1
    found.put(median(seconds[WARMUP_STEPS:steps]))


def together(recipe: Recipe) -> float:
    """(b): median seconds of a step of the cohort, with a process for each student."""
    with tempfile.TemporaryDirectory() as storage:
        by_step = seconds_by_step(train(recipe, launcher="local", storage=storage).path)
    return median(list(by_step.values())[WARMUP_STEPS:])


def seconds_by_step(path: str) -> dict[int, float]:
    """Seconds of the slowest student, by training step of a run."""
    by_step: dict[int, float] = {}
    for row in read_metrics(Folder(path)).to_pylist():
        if row["name"] == "step_s" and row["student"] != ENSEMBLE:
            by_step[row["step"]] = max(row["value"], by_step.get(row["step"], 0.0))
    return by_step


def in_turn(recipe: Recipe) -> float:
    """(c): median seconds of a step of one process that trains all students."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_in_turn, (recipe,))


def _in_turn(recipe: Recipe) -> float:
    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()
    baseline = InTurn(recipe)
    steps = baseline.training_data.schedule.steps_per_epoch * recipe.epochs
    return median([baseline.step(step) for step in range(steps)][WARMUP_STEPS:])


def measure(recipe: Recipe, rounds: int) -> tuple[float, float, float]:
    """Seconds of a step of (a), (b) and (c): medians over rounds, each of which measures all three."""
    found = [(alone(recipe), together(recipe), in_turn(recipe)) for _ in range(rounds)]
    a, b, c = (median(column) for column in zip(*found, strict=True))
    return a, b, c


def report(measured: dict[str, tuple[Recipe, tuple[float, float, float]]], rounds: int, epochs: int) -> str:
    """The figures with their conditions, as Markdown."""
    method = next(iter(measured.values()))[0].distillation.method
    lines = [
        "# Cost of a step",
        "",
        "(a) the slowest student without kdcl, all at once on the same cores; (b) the same students with",
        "kdcl, local launcher; (c) one process that trains all students in turn with all cores. Medians.",
        "",
        *conditions(
            "step_efficiency",
            f"digits 8x8, no augmentation, method {method}, {rounds} rounds of {epochs} epochs",
        ),
        "",
        "| students | batch | (a) ms | (b) ms | (c) ms | (b) / max(a) | (c) / (b) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for recipe, (a, b, c) in measured.values():
        names = " + ".join(str(student.model) for student in recipe.students)
        times = " | ".join(f"{1000 * value:.1f}" for value in (a, b, c))
        lines.append(f"| {names} | {recipe.batch_size} | {times} | {b / a:.2f} | {c / b:.2f} |")
    return "\n".join(lines) + "\n"


def recipe_of(name: str, epochs: int, method: str = "linear") -> Recipe:
    """The recipe of one of `COHORTS`."""
    models, batch_size, _ = COHORTS[name]
    students = ", ".join(f"{{name: s{index}, model: {model}}}" for index, model in enumerate(models))
    overrides = (
        f"students=[{students}]",
        f"batch_size={batch_size}",
        "data.augment=[]",
        f"epochs={epochs}",
        f"checkpoint.every_epochs={epochs}",
        f"distillation.method={method}",
    )
    return load_recipe(RECIPE, overrides)


def figures(quick: bool = False) -> list[Figure]:
    """(b) / max(a) of the cohorts that have a goal, and (c) / (b), whose goal is 1."""
    names, rounds, epochs = (["20 ms"], 1, 3) if quick else (["20 ms", "100 ms"], 3, 6)
    found = []
    for name in names:
        goal = COHORTS[name][2] or math.inf
        a, b, c = measure(recipe_of(name, epochs), rounds)
        what = f"{' + '.join(COHORTS[name][0])}, {1000 * a:.0f} ms alone"
        found.append(Figure("step", f"{what}: relative to the slowest alone", b / a, goal))
        found.append(Figure("step", f"{what}: training in turn relative to it", c / b, 1.0, at_least=True))
    return found


def main() -> None:
    """Measure all cohorts, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--method", default="linear")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured = {}
    for name in COHORTS:
        recipe = recipe_of(name, arguments.epochs, arguments.method)
        measured[name] = recipe, measure(recipe, arguments.rounds)
        print(f"{name}: {[round(1000 * value, 1) for value in measured[name][1]]} ms", flush=True)
    table = report(measured, arguments.rounds, arguments.epochs)
    print(table)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(table)


if __name__ == "__main__":
    main()
