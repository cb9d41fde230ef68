"""A distributed run gives the weights of a sequential one, bit for bit: each method.

On Ray: on_ray/test_equals_on_ray.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cohorts import Cohort, MakeRecipe
from equality import METHODS, VIEWS, check, recipe_for, students_of

from kdcl_dist.launch import local
from kdcl_dist.run.run import Run


@pytest.mark.parametrize("method", METHODS)
def test_local(method: str, make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path) -> None:
    more = ["students=" + str(students_of(make_recipe)), VIEWS, "epochs=2"]
    run = make_run(recipe_for(method, make_recipe, tmp_path, *more))
    assert local.launch(run, lambda event: None, threading.Event())
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
