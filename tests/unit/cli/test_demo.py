"""What comes with the package: a recipe, and data sets by their names."""

from __future__ import annotations

import pytest
from commands import assert_one_line, run

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.errors import DataError
from kdcl_dist.export.prediction import dataset_in
from kdcl_dist.export.preprocessing import Description


def test_the_demo_is_train_with_its_own_recipe() -> None:
    demo, train = kdcl.commands["demo"].params, kdcl.commands["train"].params
    assert [option.name for option in demo] == [option.name for option in train if option.name != "recipe"]
    assert_one_line(run("demo", "--set", "epochs=-1"), "demo/digits.yaml: epochs", "greater than 0")


def test_the_example_is_a_recipe() -> None:
    shown = run("recipe", "example")
    assert shown.exit_code == 0
    assert [student.name for student in parse_recipe(shown.output).students] == ["large", "small", "mlp"]


def test_data_sets_that_come_with_the_package() -> None:
    assert [len(open_dataset(f"kdcl:digits-{part}")) for part in ("train", "test")] == [1438, 359]
    images = Description.model_construct(input_shape=(1, 8, 8), columns=None)
    assert dataset_in(["kdcl:digits-test"], images) is not None
    with pytest.raises(DataError, match="there are kdcl:digits-test, kdcl:digits-train"):
        open_dataset("kdcl:digits")
