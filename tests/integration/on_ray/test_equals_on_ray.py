"""A run on Ray gives the weights of a sequential one, bit for bit.

Half of the methods are marked slow; all of them:
`.venv/bin/python -m pytest -m "slow or not slow" tests/integration/on_ray/test_equals_on_ray.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cohorts import Inject, MakeRecipe
from equality import METHODS, VIEWS, check, recipe_for

from kdcl_dist.launch.ray import driver as on_ray
from kdcl_dist.run.process_log import log_of
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

#: A run on Ray costs many times that of plain processes, whose members run the same code. These differ in
#: what is moved: one answer for all, all logits to all.
ON_RAY = ("linear", "dml")
ASSISTANT = "coordinator/1"
#: Runs on Ray as well with fields that change its rounds, and with assistants of the coordinator.
MORE = {
    "dml": ["accumulate=2", "students.a.ema={decay: 0.6}"],
    "linear": ["coordinators=3", "failure.max_failures=1", "limits.step_s=150"],
}


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[] if m in ON_RAY else [pytest.mark.slow]) for m in METHODS]
)
def test_ray(
    method: str, inject: Inject, make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    inject(ASSISTANT, "ensemble", 4, "kill")
    run = make_run(recipe_for(method, make_recipe, tmp_path, VIEWS, *MORE.get(method, [])))
    assert on_ray.launch(run, lambda event: None, threading.Event())
    check(run)
    causes = read_record(run.folder).get("failures", {}).get("causes", [])
    assert [(c["student"], c["step"]) for c in causes] == [(ASSISTANT, 4)] * (run.recipe.coordinators > 1)
    if run.recipe.coordinators > 1:
        assert run.folder.read(log_of(ASSISTANT)).decode().count("starts") == 2


def test_ray_with_windows(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    """More on windows is in test_window.py, and on best epochs in test_best.py."""
    best = ("data.val_fraction=0.3", "checkpoint.best=top1")
    run = make_run(make_recipe(VIEWS, "batch_size=7", "distillation.window=epoch", *best))
    assert on_ray.launch(run, lambda event: None, threading.Event())
    check(run)
    assert {"a/best", "b/best"} <= read_record(run.folder)["results"].keys()
