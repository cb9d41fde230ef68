"""`kdcl plan` measures students, exchange, ensemble and cores on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from cohorts import ROOT, MakeRecipe

from kdcl_dist.cli import kdcl
from kdcl_dist.planning.measure_cores import measure_cores
from kdcl_dist.planning.measure_exchange import measure_ensemble, measure_link
from kdcl_dist.planning.measure_students import measure_student


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(kdcl, ["plan", str(ROOT / "examples/digits.yaml"), *arguments])


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


GIVEN = ("--given", "large=0.1", "--given", "small=0.02", "--given", "mlp=0.01", "--given", "ensemble=0.005")


def test_a_student_is_measured_at_every_share(make_recipe: MakeRecipe) -> None:
    costs = measure_student(make_recipe("distillation.method=dml"), 0, [1, 4])
    assert costs.keys() == {16, 4}
    assert all(0 < part < 10 for cost in costs.values() for part in cost)


def test_the_frozen_teacher_and_the_shared_parts_are_measured(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    from kdcl_dist import models

    weights = tmp_path / "teacher.pt"
    torch.save(models.build("mlp", 4, 1).state_dict(), weights)
    recipe = make_recipe(
        "distillation={method: teacher, teacher: b}", f"students.b.weights={weights}", "students.a.replicas=2"
    )
    assert 0 < measure_student(recipe, 1, [1])[16].total_s < 10
    assert 0 < measure_ensemble(recipe, 4) < 10
    link = measure_link(recipe)
    assert 0 <= link.latency_s < 10
    assert link.bandwidth > 1e5


def test_the_cores_are_at_most_as_many_as_asked(make_recipe: MakeRecipe) -> None:
    assert 1 <= measure_cores(make_recipe()) <= max(2, os.cpu_count() or 1)


def test_the_rest_is_measured(make_recipe: MakeRecipe) -> None:
    result = plan(*GIVEN[2:], "--set", "students.large.model=cnn_small", "--set", "batch_size=16")
    assert result.exit_code == 0, result.output
    assert "large measured on this machine, the rest given or default" in result.output
    assert "measuring large" in result.output
