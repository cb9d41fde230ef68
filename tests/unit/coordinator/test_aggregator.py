"""A training step's answer where some students are bad or away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.logit_bank import LogitBank
from kdcl_dist.coordinator.step_sums import StepSums
from kdcl_dist.errors import NonFiniteLogits
from kdcl_dist.exchange.message import Contribution

IDS, LABELS = torch.arange(6), torch.arange(6) % 4
GOOD, BAD = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.full((6, 4), torch.nan)


def parts(*logits: torch.Tensor) -> list[Contribution]:
    return [Contribution(IDS[: len(each)], LABELS[: len(each)], each) for each in logits]


def test_the_last_teacher_that_is_there_is_named_where_its_logits_are_bad(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    (tmp_path / "model.pt").touch()
    weights = f"model: mlp, weights: {tmp_path / 'model.pt'}"
    students = f"students=[{{name: a, model: mlp}}, {{name: t, {weights}}}, {{name: u, {weights}}}]"
    ours = Aggregator(make_recipe(students, "distillation={method: teacher, teacher: {t: 1, u: 1}}"))
    ours.members = ours.present = [0, 1]
    with pytest.raises(NonFiniteLogits) as caught:
        ours.answer(parts(GOOD, BAD, GOOD[:0]), 0)
    assert caught.value.student == "t"


@pytest.mark.parametrize(("window", "has"), [(1, False), (2, True)])
def test_coverage_is_a_figure_of_windows_only(window: int, has: bool, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(f"distillation.window={window}")
    ours = Aggregator(recipe, None if window == 1 else LogitBank(2, 6, 4))
    answer = ours.answer(parts(GOOD, BAD), 0)
    assert (StepSums.of(recipe, answer, ours.weights_S, 0.0, 0).staleness is not None) == has
