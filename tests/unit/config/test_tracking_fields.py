"""The section `tracking` of a recipe."""

from __future__ import annotations

import jsonschema
import pytest
import yaml
from cohorts import MakeRecipe

from kdcl_dist.config.differences import forbidden_changes
from kdcl_dist.config.recipe_file import dump_recipe, parse_recipe
from kdcl_dist.config.reference import recipe_schema
from kdcl_dist.config.stored_imports import import_strings
from kdcl_dist.errors import RecipeError


@pytest.mark.parametrize(
    ("items", "names"),
    [
        ("[]", []),
        ("[tensorboard, wandb, mlflow, csv]", ["tensorboard", "wandb", "mlflow", "csv"]),
        ("[{name: csv}, {name: wandb, project: p, every_steps: 50}]", ["csv", "wandb"]),
        ("['my:T', {name: 'my.own:U', to: [1, x]}]", ["my:T", "my.own:U"]),
        ("[{name: mlflow, uri: 'http://h:5000/path@x'}]", ["mlflow"]),
        ("[{name: mlflow, uri: 'http://[::1]:5000/path@x'}]", ["mlflow"]),
        ("[{name: mlflow, uri: 'sqlite:////tmp/a@b.db'}]", ["mlflow"]),
    ],
)
def test_names_and_fields(items: str, names: list[str], make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(f"tracking={items}")
    assert recipe.trackers == names
    stored = dump_recipe(recipe)
    assert parse_recipe(stored) == recipe
    jsonschema.validate(yaml.safe_load(stored), recipe_schema())
    assert import_strings(recipe) == {name for name in names if ":" in name}
    assert forbidden_changes(make_recipe(), recipe) == []


def test_tensorboard_is_the_default(make_recipe: MakeRecipe) -> None:
    assert make_recipe().trackers == ["tensorboard"]
    assert "tracking:\n- tensorboard\n" in dump_recipe(make_recipe())


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (
            "[wandbs]",
            "tracking.0: 'wandbs' is unknown: have tensorboard, csv, wandb, mlflow, or an import string",
        ),
        ("[csv, {name: csv, every_steps: 3}]", "tracking.1: 'csv' has no fields (got every_steps)"),
        ("[{name: wandb, projekt: p}]", "tracking.0.projekt: unknown field here, did you mean 'project'?"),
        (
            "[{name: mlflow, every_steps: 0}]",
            "tracking.0.every_steps: Input should be greater than 0 (got 0)",
        ),
        ("[{project: p}]", "tracking.0: must be the name of a tracker"),
        ("[{name: mlflow, uri: 'http://[::1/'}]", "tracking.0: uri: Invalid IPv6 URL"),
        ("[5]", "tracking.0: must be the name of a tracker"),
        ("csv", "tracking: Input should be a valid list (got 'csv')"),
        ("[csv, {name: csv}]", "tracking: 'csv' is there more than once"),
        ("[wandb, {name: wandb, project: p}]", "tracking: 'wandb' is there more than once"),
    ],
)
def test_mistakes_are_one_line(items: str, words: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError) as found:
        make_recipe(f"tracking={items}")
    assert words in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "http://me:hidden@h:1",
            "http://hidden@h",
            "https://h/?api_key=hidden",
            "https://h/?x=1&Token=hidden",
        ),
        *(
            "http://me:hid/hidden@h:1",
            "http://me:a@b/hidden@h",
            "http://me:hidden\u2100x@h",
            "http://[x:hidden@h",
        ),
    ],
)
def test_a_uri_with_a_secret_is_refused_unseen(uri: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"tracking\.0: uri: holds a user, password or token") as found:
        make_recipe(f"tracking=[{{name: mlflow, uri: '{uri}', experiment: e}}]")
    assert "hidden" not in str(found.value)
