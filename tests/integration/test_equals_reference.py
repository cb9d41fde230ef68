"""A distributed run gives the weights of a sequential one, bit for bit: each method, both launchers.

On Ray half of the methods are marked slow; all of them:
`.venv/bin/python -m pytest -m "slow or not slow" tests/integration/test_equals_reference.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from cohorts import Cohort, MakeRecipe
from equality import VIEWS, check, recipe_for, students_of

from kdcl_dist.launch import local
from kdcl_dist.launch.ray import driver as on_ray
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

METHODS = ("none", "naive", "linear", "min_logit", "general", "mean", "dml", "switokd", "teacher")
#: A run on Ray costs many times that of plain processes, whose members run the same code. These differ in
#: what is moved: one answer for all, all logits to all.
ON_RAY = ("linear", "dml")
#: Fields that change the rounds of a run, on Ray as well.
ROUNDS = ("accumulate=2", "students.a.ema={decay: 0.6}")


@pytest.mark.parametrize("method", METHODS)
def test_local(method: str, make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path) -> None:
    more = ["students=" + str(students_of(make_recipe)), VIEWS, "epochs=2"]
    run = make_run(recipe_for(method, make_recipe, tmp_path, *more))
    assert local.launch(run, lambda event: None, threading.Event())
    check(run)


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
    more = ROUNDS if method == "dml" else ()
    run = make_run(recipe_for(method, make_recipe, tmp_path, VIEWS, *more))
    assert on_ray.launch(run, lambda event: None, threading.Event())
    check(run)


def test_ray_with_windows(cluster: None, make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    """More on windows is in test_window.py, and on best epochs in test_best.py; this cluster is started."""
    best = ("data.val_fraction=0.3", "checkpoint.best=top1")
    run = make_run(make_recipe(VIEWS, "batch_size=7", "distillation.window=epoch", *best))
    assert on_ray.launch(run, lambda event: None, threading.Event())
    check(run)
    assert {"a/best", "b/best"} <= read_record(run.folder)["results"].keys()


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
