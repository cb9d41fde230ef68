"""Frozen members of a cohort teach, and learn nothing: the weights are those of the sequential reference."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cohorts import Cohort, Inject, MakeRecipe, assert_same, weights
from equality import VIEWS, check

from kdcl_dist import models
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.launch import local
from kdcl_dist.run.run import Run

CASES = {
    "linear": [],
    "general, in parts": ["distillation.method=general", "data.holdout_per_class=3", "accumulate=2"],
    "dml": ["distillation.method=dml"],
    "mean, in windows": ["distillation={method: mean, window: 4}", "batch_size=7"],
    "teachers": ["distillation={method: teacher, teacher: {c: 1, d: 3}}"],
    "teachers, in windows": ["distillation={method: teacher, teacher: {c: 1, d: 3}, window: 4}"],
}


@pytest.fixture
def make_cohort(make_recipe: MakeRecipe, tmp_path: Path) -> Callable[..., Recipe]:
    """Two students that learn, and two that are frozen with given weights."""
    paths = {}
    for name in ("cnn_small", "mlp"):
        torch.manual_seed(5)
        paths[name] = tmp_path / f"{name}.pt"
        torch.save(models.build(name, 4, 1).state_dict(), paths[name])
    frozen = [
        f"{{name: {name}, model: {model}, weights: '{paths[model]}', frozen: true}}"
        for name, model in (("c", "cnn_small"), ("d", "mlp"))
    ]
    students = "{name: a, model: cnn_small}, {name: b, model: mlp, optimizer: {lr: 0.05}}"
    return lambda *overrides: make_recipe(f"students=[{students}, {', '.join(frozen)}]", *overrides)


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_it_equals_the_reference(
    case: str, make_cohort: Callable[..., Recipe], make_run: Callable[..., Run]
) -> None:
    recipe, asked = make_cohort(*CASES[case]), itertools.count()
    assert not Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 4).errors
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    check(run)
    step = max(int(path.name[5:]) for path in Path(f"{run.folder.local}/checkpoints").iterdir())
    given = torch.load(recipe.students[2].weights or "", weights_only=True)
    assert_same(weights(run.folder, step, "c"), given)


def test_of_processes_with_replicas_one_that_dies_is_replaced(
    make_cohort: Callable[..., Recipe], make_run: Callable[..., Run], inject: Inject
) -> None:
    run = make_run(make_cohort(VIEWS, "students.c.replicas=2", "failure.max_failures=1"))
    met = inject("c/1", "forward", 4, "kill")
    assert local.launch(run, lambda event: None, threading.Event())
    assert met.exists()
    check(run)


def test_a_frozen_member_has_no_optimiser(make_cohort: Callable[..., Recipe]) -> None:
    from kdcl_dist.student.student import Student

    student = Student(make_cohort(), 2, classes=4, channels=1, device=torch.device("cpu"))
    assert not hasattr(student, "optimizer")
    assert set(student.state_dict()) == {"model"}
    with_more = student.state_dict() | {"optimizer": {"of": "version 0.1.0"}, "scaler": {}}
    student.load_state_dict(with_more)
