"""What cannot be measured is an error that names the student or the network."""

from __future__ import annotations

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.errors import ModelError, RecipeError
from kdcl_dist.planning.measure_exchange import _ensemble
from kdcl_dist.planning.measure_students import measure_student


def test_a_missing_gpu_can_be_given(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RecipeError, match="no GPU to measure on; give the step's seconds with --given a=SECONDS"
    ):
        measure_student(make_recipe("students.a.resources.gpu=1"), 0, [1])


def test_a_network_that_fails_gives_the_error_of_training(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ModelError, match="lexikon"):
        measure_student(make_recipe("students.a.model=lexikon"), 0, [1])


def test_an_ensemble_with_a_file_has_the_samples_of_the_others(make_recipe: MakeRecipe) -> None:
    students = "students=[{name: a, model: mlp}, {name: t, logits: t.arrow}]"
    assert _ensemble(make_recipe(students, "distillation={method: mean, window: 4}"), 4) > 0
