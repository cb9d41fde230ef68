"""The replay of a run's record: its recipe, computed sequentially by the reference of the tests."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.run.checkpoint import read_manifest, read_part, steps
from kdcl_dist.run.run import load_run
from kdcl_dist.run.storage import Folder

__all__ = ["differing_students"]


def differing_students(run: Folder) -> list[str]:
    """The students whose weights at the end of the last epoch are not those of the replay.

    Their learning rates are constant, so that the run's number of epochs says nothing of them.
    """
    sys.path.append(str(Path("tests/support").absolute()))
    reference = import_module("reference")
    recipe, _ = load_run(run.uri)
    per_epoch = TrainingData.open(recipe).schedule.steps_per_epoch
    step = max(step for step in steps(run) if step % per_epoch == 0)
    replayed, manifest = until(recipe, step // per_epoch), read_manifest(run, step)
    expected = reference.train(replayed)
    names = zip(replayed.names, expected, strict=True)
    return [name for name, state in names if not _same(read_part(run, manifest, name)["model"], state)]


def until(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe's first epochs; their students learn as long as they take part."""
    students = []
    for student in recipe.students:
        if student.from_epoch <= epochs:
            end = student.until_epoch
            changes = {"until_epoch": None if end is None or end >= epochs else end, "epochs": None}
            students.append(student.model_dump(mode="json") | changes)
    return Recipe.model_validate(recipe.model_dump(mode="json") | {"epochs": epochs, "students": students})


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
