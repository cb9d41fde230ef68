"""Comparing a run with the sequential reference, bit for bit."""

from __future__ import annotations

from pathlib import Path

import reference
import torch
from cohorts import MakeRecipe, assert_same, weights

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.run.run import Run

METHODS = ("none", "naive", "linear", "min_logit", "general", "mean", "dml", "switokd", "teacher")
VIEWS = "data.augment=[{name: RandomCrop, size: 8, padding: 1}, {name: RandomErasing, p: 0.5}]"


def recipe_for(method: str, make_recipe: MakeRecipe, tmp_path: Path, *more: str) -> Recipe:
    """A recipe with that method, and what the method needs."""
    overrides = [f"distillation.method={method}", *more]
    if method == "general":
        overrides.append("data.holdout_per_class=3")
    if method == "teacher":
        from kdcl_dist import models

        torch.manual_seed(5)
        path = tmp_path / "teacher.pt"
        torch.save(models.build("cnn_small", 4, 1).state_dict(), path)
        overrides += ["distillation.teacher=a", f"students.a.weights={path}"]
    return make_recipe(*overrides)


def check(run: Run) -> None:
    """Compare the last checkpoint with the reference."""
    averages: dict[str, dict[str, torch.Tensor]] = {}
    expected = reference.train(run.recipe, averages)
    step = max(int(p.name[5:]) for p in Path(f"{run.folder.local}/checkpoints").iterdir())
    for index, student in run.recipe.networks.items():
        assert_same(weights(run.folder, step, student.name), expected[index])
    for name, state in averages.items():
        assert_same(weights(run.folder, step, name, "ema"), state)


def students_of(make_recipe: MakeRecipe) -> list[dict]:
    """The cohort of the test with dropout as a third student, plain enough for YAML."""
    cohort = [
        s.model_dump(mode="json", include={"name", "model", "optimizer"}) for s in make_recipe().students
    ]
    return [*cohort, {"name": "c", "model": "nets:Dropout", "optimizer": {"lr": 0.05, "momentum": 0.5}}]


PAIR = "students=[{name: a, model: mlp, replicas: 2}, {name: b, model: mlp, optimizer: {lr: 0.05}}]"


def single(recipe: Recipe) -> Recipe:
    """The same recipe without replicas."""
    students = [student.model_copy(update={"replicas": 1}) for student in recipe.students]
    return recipe.model_copy(update={"students": students})


def check_replicas(run: Run, atol: float, step: int = 6) -> None:
    for name, state in zip(run.recipe.names, reference.train(single(run.recipe)), strict=True):
        found = weights(run.folder, step, name)
        assert found.keys() == state.keys()
        for key in state:
            assert torch.allclose(found[key].double(), state[key].double(), atol=atol), (name, key)
