"""`distillation.record_logits`: each recipe that cannot be recorded is one line with its remedy."""

from __future__ import annotations

import pytest
from cohorts import MakeRecipe

from kdcl_dist.errors import RecipeError

RECORD = "distillation.record_logits={students: [a, ensemble]}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.views=null"], "data.views is null: set it, to 2 for the views of all epochs"),
        (["distillation.record_logits.students=[a, a]"], "students: 'a' is there more than once"),
        (["distillation.record_logits.students=[c]"], "no student is named 'c' (have a, b, and ensemble)"),
        (["distillation.record_logits.students=[]"], "distillation.record_logits.students"),
        (["distillation.record_logits.top_k=0"], "distillation.record_logits.top_k"),
        (["distillation.record_logits.dtype=fp8"], "distillation.record_logits.dtype"),
        (["distillation.record_logits.epochs=2"], "distillation.record_logits.epochs"),
        (["students=[{name: a, logits: x}, {name: b, model: mlp}]"], "'a' is a file of logits already"),
        (["data.mixup={}", "distillation.loss=kl"], "those of no sample; leave data.mixup out"),
        (["data.cutmix={}", "distillation.loss=kl"], "those of no sample; leave data.cutmix out"),
        (["coordinators=2"], "coordinators: 2 see a share of the logits each"),
        (["distillation.window=2"], "'ensemble' needs the logits of all students at the same step"),
    ],
)
def test_a_mistake_is_one_line(overrides: list[str], words: str, make_recipe: MakeRecipe) -> None:
    make_recipe("data.views=2", RECORD)
    with pytest.raises(RecipeError) as caught:
        make_recipe("data.views=2", RECORD, *overrides)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_ensemble_is_recorded_by_default(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("data.views=2", "distillation.record_logits={}")
    assert recipe.distillation.record_logits is not None
    assert recipe.distillation.record_logits.students == ["ensemble"]
