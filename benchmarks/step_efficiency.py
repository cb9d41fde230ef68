"""How much a step of the cohort costs over that of its slowest student, and against training in turn.

    python -m benchmarks.step_efficiency --out docs/results/step-efficiency.md

In one run, several rounds one after another, each of

    (a) every student alone, all at once on the same cores, without distillation;
    (b) the same students with kdcl (local launcher), coordinator and exchange included;
    (c) one process that trains all of them in turn with all cores, as public implementations do;

for cohorts of three sizes. The figures are medians over steps, then over rounds; compare ratios, not times.
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
#: Two students on one core each, the batch, and the goal of (b) / max(a), if there is one for steps of this
#: length. Augmentation is left out, so that networks make up the step.
CASTS: dict[str, tuple[tuple[str, str], int, float | None]] = {
    "10 ms": (("cnn_medium", "cnn_small"), 64, None),
    "20 ms": (("cnn_medium", "cnn_medium"), 160, 1.2),
    "30 ms": (("cnn_large", "cnn_medium"), 64, 1.2),
    "100 ms": (("cnn_large", "cnn_large"), 256, 1.05),
}
WARMUP_STEPS = 5


def alone(recipe: Recipe, kind: str = "cpu") -> float:
    """(a): median seconds of a step of the slowest student, all running at once, none knowing of another.

    Args:
        recipe: the cohort.
        kind: of device, which all share.
    """
    context = get_context("spawn")
    number = len(recipe.students)
    start, found, through = context.Barrier(number), context.SimpleQueue(), context.Value("i", 0)
    jobs = [
        context.Process(target=_alone, args=(recipe, index, kind, start, found, through))
        for index in range(number)
    ]
    for job in jobs:
        job.start()
    seconds = [found.get() for _ in jobs]
    for job in jobs:
        job.join()
    return float(max(seconds))


def _alone(recipe: Recipe, index: int, kind: str, start: Any, found: Any, through: Any) -> None:
    """One student by itself; it goes on until the slowest is through, so that all cores stay in use."""
    torch.set_num_threads(recipe.students[index].resources.cpu)
    keep_freed_memory()
    training_data = TrainingData.open(recipe)
    classes, channels = len(training_data.train.classes), training_data.train.channels
    student = Student(recipe, index, classes=classes, channels=channels, device=torch.device(kind))
    steps = training_data.schedule.steps_per_epoch * recipe.epochs
    batches = chain.from_iterable(training_data.training_batches(index, 0) for _ in count())
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
    """(b): median seconds of a step of the cohort, each process of which is on its own."""
    with tempfile.TemporaryDirectory() as storage:
        by_step = seconds_by_step(train(recipe, launcher="local", storage=storage).path)
    return median(list(by_step.values())[WARMUP_STEPS:])


def seconds_by_step(path: str) -> dict[int, float]:
    """Of each training step of a run, the time of the student for which it took longest."""
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
    """Seconds a step of (a), (b) and (c): medians over rounds, which alternate between the three."""
    found = [(alone(recipe), together(recipe), in_turn(recipe)) for _ in range(rounds)]
    a, b, c = (median(column) for column in zip(*found, strict=True))
    return a, b, c


def report(measured: dict[str, tuple[Recipe, tuple[float, float, float]]], rounds: int, epochs: int) -> str:
    """The figures with their conditions, as Markdown."""
    method = next(iter(measured.values()))[0].distillation.method
    lines = [
        "# What a step costs",
        "",
        "(a) each student alone, all at once on the same cores, the slowest; (b) the same students with",
        "kdcl, local launcher; (c) one process that trains all in turn with all cores. Medians.",
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
        names = " + ".join(student.model for student in recipe.students)
        times = " | ".join(f"{1000 * value:.1f}" for value in (a, b, c))
        lines.append(f"| {names} | {recipe.batch_size} | {times} | {b / a:.2f} | {c / b:.2f} |")
    return "\n".join(lines) + "\n"


def recipe_of(name: str, epochs: int, method: str = "linear") -> Recipe:
    """The recipe of one of `CASTS`."""
    models, batch_size, _ = CASTS[name]
    students = ", ".join(f"{{name: s{place}, model: {model}}}" for place, model in enumerate(models))
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
    """(b) / max(a) of the cohorts that have a goal, and (c) / (b), which has none but 1."""
    names, rounds, epochs = (["20 ms"], 1, 3) if quick else (["20 ms", "100 ms"], 3, 6)
    found = []
    for name in names:
        goal = CASTS[name][2] or math.inf
        a, b, c = measure(recipe_of(name, epochs), rounds)
        what = f"{' + '.join(CASTS[name][0])}, {1000 * a:.0f} ms alone"
        found.append(Figure("step", f"{what}: over the slowest alone", b / a, goal))
        found.append(Figure("step", f"{what}: training in turn over it", c / b, 1.0, at_least=True))
    return found


def main() -> None:
    """Measure all cohorts, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--method", default="linear")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    measured = {}
    for name in CASTS:
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
