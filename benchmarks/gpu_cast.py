"""Two students that share one device: with kdcl, and each for itself beside the other."""

from __future__ import annotations

import tempfile
import time
from itertools import chain, count
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch

from kdcl_dist.metrics import ENSEMBLE, read_metrics
from kdcl_dist.recipe import Recipe
from kdcl_dist.recipe_file import load_recipe
from kdcl_dist.session import Session
from kdcl_dist.storage import Folder
from kdcl_dist.student import Student
from kdcl_dist.training import train

__all__ = ["cast_and_alone"]

WARMUP_STEPS = 5


def cast_and_alone(device: torch.device, rounds: int, quick: bool) -> tuple[float, float]:
    """Milliseconds of a step: of the slower student without kdcl, and of the cast; in turns, medians."""
    share = 0.5 if device.type == "cuda" else 0.0
    model, epochs = ("cnn_small", 1) if quick else ("cnn_large", 4)
    students = ", ".join(
        f"{{name: {name}, model: {model}, resources: {{gpu: {share}}}}}" for name in ("one", "two")
    )
    overrides = [f"students=[{students}]", "data.augment=[]", f"epochs={epochs}"]
    recipe = load_recipe("examples/digits.yaml", overrides)
    found = [(_alone(recipe, device.type), _together(recipe)) for _ in range(1 if quick else rounds)]
    alone, cast = (1000 * median(column) for column in zip(*found, strict=True))
    return alone, cast


def _together(recipe: Recipe) -> float:
    with tempfile.TemporaryDirectory() as storage:
        rows = read_metrics(Folder(train(recipe, launcher="local", storage=storage).path)).to_pylist()
    by_step: dict[int, float] = {}
    for row in rows:
        if row["name"] == "step_s" and row["student"] != ENSEMBLE:
            by_step[row["step"]] = max(row["value"], by_step.get(row["step"], 0.0))
    return median(list(by_step.values())[WARMUP_STEPS:])


def _alone(recipe: Recipe, kind: str) -> float:
    context = get_context("spawn")
    number = len(recipe.students)
    start, found, through = context.Barrier(number), context.SimpleQueue(), context.Value("i", 0)
    jobs = [
        context.Process(target=_one, args=(recipe, index, kind, start, found, through))
        for index in range(number)
    ]
    for job in jobs:
        job.start()
    seconds = [float(found.get()) for _ in jobs]
    for job in jobs:
        job.join()
    return max(seconds)


def _one(recipe: Recipe, index: int, kind: str, start: Any, found: Any, through: Any) -> None:
    """One student by itself; it goes on until both are through, so that they share the device throughout."""
    torch.set_num_threads(recipe.students[index].resources.cpu)
    session = Session.open(recipe)
    classes, channels = len(session.train.classes), session.train.channels
    student = Student(recipe, index, classes=classes, channels=channels, device=torch.device(kind))
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
