"""A distributed run gives the weights of a sequential one, bit for bit: each method, both launchers.

On Ray half of the methods are marked slow; all of them:
`.venv/bin/python -m pytest -m "slow or not slow" tests/test_equals_reference.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import reference
import torch
from conftest import Cohort, MakeRecipe, assert_same, weights

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.launch import local
from kdcl_dist.launch.ray import driver as on_ray
from kdcl_dist.run.run import Run

METHODS = ("none", "naive", "linear", "min_logit", "general", "mean", "dml", "teacher")
#: A run on Ray costs many times that of plain processes, whose members run the same code. These differ in
#: what is moved: one answer for all, all logits to all.
ON_RAY = ("linear", "dml")
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
    expected = reference.train(run.recipe)
    step = max(int(p.name[5:]) for p in Path(f"{run.folder.local}/checkpoints").iterdir())
    for name, state in zip(run.recipe.names, expected, strict=True):
        assert_same(weights(run.folder, step, name), state)


@pytest.mark.parametrize("method", METHODS)
def test_local(method: str, make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path) -> None:
    more = ["students=" + str(students_of(make_recipe)), VIEWS, "epochs=2"]
    run = make_run(recipe_for(method, make_recipe, tmp_path, *more))
    assert local.launch(run, lambda event: None, threading.Event())
    check(run)


def students_of(make_recipe: MakeRecipe) -> list[dict]:
    """The cohort of the test with dropout as a third student, plain enough for YAML."""
    cohort = [
        s.model_dump(mode="json", include={"name", "model", "optimizer"}) for s in make_recipe().students
    ]
    return [*cohort, {"name": "c", "model": "nets:Dropout", "optimizer": {"lr": 0.05, "momentum": 0.5}}]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m in ON_RAY else [pytest.mark.slow]) for m in METHODS]
)
def test_ray(
    method: str, cluster: None, make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run(recipe_for(method, make_recipe, tmp_path, VIEWS))
    assert on_ray.launch(run, lambda event: None, threading.Event())
    check(run)


def test_ray_with_windows(cluster: None, make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    """More on windows is in test_window.py; this cluster is started already."""
    run = make_run(make_recipe(VIEWS, "batch_size=7", "distillation.window=epoch"))
    assert on_ray.launch(run, lambda event: None, threading.Event())
    check(run)


@pytest.mark.parametrize(
    "override",
    [
        "distillation.invariant=false",
        "distillation.logit_noise=0.3",
        "distillation.weight=0.25",
        "distillation={method: linear, wire_precision: fp16}",
        "distillation={method: min_logit, wire_precision: bf16}",
        "distillation={method: dml, wire_precision: fp16}",
        "distillation={method: mean, window: 3, wire_precision: fp16}",
        "distillation.temperature=5.0",
        "students.b.seed=3",
        "students.b.epochs=1",
        "seed=11",
        "batch_size=7",
    ],
)
def test_threads(override: str, make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    run = make_run(make_recipe(override))
    cohort = Cohort(run).train()
    assert not cohort.errors
    check(run)
