"""The recipe of a call in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from nets import Plain
from torch import nn

from kdcl_dist.api.build import PARTS, Student, build_recipe, name_objects
from kdcl_dist.config.data import Data
from kdcl_dist.config.distillation import Distillation
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.errors import RecipeError
from kdcl_dist.utils.objects import Copied, Given

SETS = ("train.arrow", "test.arrow")


def build(students: Mapping[str, Any] | None = None, data: Any = SETS, **fields: Any) -> Recipe:
    return build_recipe(students or {"a": "mlp"}, data, fields)[0]


def test_keywords_are_fields_of_the_recipe_of_its_sections_and_of_all_students() -> None:
    recipe = build(
        {"a": "mlp", "b": Student({"name": "nets:Deep", "depth": 2}, label_smoothing=0.2, seed=7)},
        epochs=3,
        method="mean",
        distillation={"temperature": 3.0},
        holdout_per_class=1,
        label_smoothing=0.1,
    )
    assert (recipe.epochs, recipe.distillation.method, recipe.distillation.temperature) == (3, "mean", 3.0)
    assert recipe.data.holdout_per_class == 1
    assert [(each.name, each.label_smoothing, each.seed) for each in recipe.students] == [
        ("a", 0.1, None),
        ("b", 0.2, 7),
    ]
    assert str(recipe.students[1].model) == "nets:Deep(depth=2)"


def test_the_defaults_suit_any_network_and_give_way_to_what_is_said() -> None:
    students = {
        "default": "mlp",
        "faster": Student("mlp", optimizer={"lr": 0.01}),
        "other": Student("mlp", optimizer="sgd", schedule={"name": "multistep", "milestones": (1, 2)}),
    }
    found = {each.name: each for each in build(students, epochs=5, schedule="constant").students}
    assert (found["default"].optimizer.name, found["default"].optimizer.lr) == ("adamw", 1e-3)
    assert found["default"].schedule.name == "constant"
    assert (found["faster"].optimizer.name, found["faster"].optimizer.lr) == ("adamw", 0.01)
    assert (found["other"].optimizer.name, found["other"].optimizer.lr) == ("sgd", 0.1)
    assert found["other"].schedule.name == "multistep"
    assert build().students[0].schedule.name == "cosine"


def test_validation_samples_keep_the_best_epoch() -> None:
    assert build().checkpoint.best is None
    assert build(val_fraction=0.1).checkpoint.best == "top1"
    assert build(data=(*SETS, "val.arrow"), checkpoint={"keep": 5}).checkpoint.model_dump() == {
        "every_epochs": 1,
        "keep": 5,
        "in_memory_every_steps": 0,
        "best": "top1",
    }
    assert build(val_fraction=0.1, checkpoint={"best": "loss"}).checkpoint.best == "loss"


def test_objects_get_names_of_their_own() -> None:
    network = nn.Linear(2, 2)
    students = {"a-1": network, "a_1": Plain, "1": lambda num_classes: network, "named": "mlp"}
    items, sets, objects = name_objects(students, (["x"], Plain, "val.arrow"))
    assert [item["model"] for item in items] == ["object:a_1", "object:a_1_2", "object:_1", "mlp"]
    assert sets == {"train": "object:train_set", "test": "object:test_set", "val": "val.arrow"}
    assert isinstance(objects["object:a_1"], Copied)
    assert objects["object:a_1_2"] is Plain
    assert objects["object:train_set"] == Given(["x"])
    assert objects["object:test_set"] is Plain  # a function or class makes the data set
    recipe = build(students, data={"train": ["x"], "test": "test.arrow", "val_fraction": 0.5})
    assert recipe.data.val_fraction == 0.5
    assert parse_recipe(str(recipe)) == recipe


def test_a_keyword_has_one_meaning() -> None:
    names = [name for part in (Recipe, Data, Distillation) for name in PARTS[part]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("students", "data", "fields", "message"),
    [
        ({"a": "mlp"}, SETS, {"methd": "mean"}, "train() has no keyword 'methd'.*did you mean 'method'"),
        ({"a": "mlp"}, SETS, {"zzzz": 1}, "train() has no keyword 'zzzz'.*docs/recipe.md"),
        ({"a": "mlp"}, SETS, {"epochs": 0}, "train(): epochs: .*got 0"),
        ({"a": "mlp"}, "train.arrow", {}, "data: must be (training set, test set)"),
        ({"a": "mlp"}, ("train.arrow",), {}, "data: must be (training set, test set)"),
        ({"a": 3}, SETS, {}, "students['a']: must be a torch.nn.Module"),
        ({"a b": "mlp"}, SETS, {}, "train(): students.0.name: "),
        ({"a": Student("mlp", optimiser="sgd")}, SETS, {}, "students.0.optimiser: unknown field"),
        ({}, SETS, {}, "train(): students: "),
    ],
    ids=str,
)
def test_mistakes_are_one_line(students: Any, data: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        build_recipe(students, data, fields)
    first, *rest = message.split(".*")
    assert first in str(error.value)
    assert all(part in str(error.value) for part in rest)
    assert "\n" not in str(error.value)


def test_a_file_of_logits_is_a_student_without_other_fields() -> None:
    found = build({"t": Student(logits="t.arrow"), "a": "mlp"}, label_smoothing=0.1)
    assert found.stored == {0: "t.arrow"}
    assert found.students[1].label_smoothing == 0.1
