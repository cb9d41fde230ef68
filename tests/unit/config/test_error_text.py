"""Validation errors as text: whole messages, with path, reason, value and suggestion."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import Tag, ValidationError

from kdcl_dist.config import optim, schedules
from kdcl_dist.config.base import OWN
from kdcl_dist.config.error_text import UNION_BRANCHES, describe_errors
from kdcl_dist.config.recipe import Recipe

VALID = {"data": {"train": "a", "test": "b"}, "students": [{"name": "one", "model": "mlp"}]}


def text_of(**changes: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(VALID | changes)
    return describe_errors(caught.value, Recipe)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": "two"}, "epochs: Input should be a valid integer (got 'two')"),
        ({"epohcs": 3}, "epohcs: unknown field here, did you mean 'epochs'? (got 3)"),
        ({"zzzzzz": 3}, "zzzzzz: unknown field here (got 3)"),
        # A field that exists elsewhere is unknown here, and no suggestion names it again.
        ({"momentum": 0.9}, "momentum: unknown field here (got 0.9)"),
        ({"data": {"train": "a"}}, "data.test: Field required"),
        ({"data": 3}, "data: Input should be a valid dictionary or instance of Data (got 3)"),
        (
            {"distillation": {"window": 0}},
            "distillation.window: Input should be greater than 0 or 'epoch' (got 0)",
        ),
        (
            {"epochs": 0, "seed": -1},
            "seed: Input should be greater than or equal to 0 (got -1); "
            "epochs: Input should be greater than 0 (got 0)",
        ),
        (
            {"students": [{"name": "one", "model": "mlp", "optimizer": {"lr": 0}}]},
            "students.0.optimizer.lr: Input should be greater than 0 (got 0)",
        ),
        (
            {"students": [{"name": "coordinator", "model": "mlp"}]},
            "students.0.name: coordinator, ensemble, launcher, manifest are names of other parts of a run "
            "(got 'coordinator')",
        ),
        (
            {"distillation": {"method": "general"}},
            "data.holdout_per_class: method 'general' weighs the students by samples held out of training; "
            "set it to 1 or more (got 0)",
        ),
    ],
)
def test_the_whole_text(changes: dict[str, object], text: str) -> None:
    assert text_of(**changes) == text


def test_a_long_value_is_cut() -> None:
    text = text_of(epochs="x" * 1000)
    assert text.endswith("x...)")
    assert len(text) < 120


def test_every_branch_of_a_union_is_known() -> None:
    """A new optimiser or schedule would show up in the paths otherwise."""
    names = {"optimizer": optim.Optimizer, "schedule": schedules.Schedule}
    for field, union in names.items():
        for kind in get_args(get_args(union)[0]):
            (tag,) = (each.tag for each in kind.__metadata__ if isinstance(each, Tag))
            assert tag in UNION_BRANCHES
            if tag == OWN:  # takes any field
                continue
            student = {"name": "one", "model": "mlp", field: {"name": tag, "typo": 1}}
            assert text_of(students=[student]).startswith(f"students.0.{field}.typo: unknown field here")
