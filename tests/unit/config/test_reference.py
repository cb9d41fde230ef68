"""The recipe's reference: docs/recipe.md and the JSON schema, held to the models and to each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from cohorts import ROOT
from commands import fences
from jsonschema import Draft202012Validator

from kdcl_dist.cli import kdcl
from kdcl_dist.config.base import Strict
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import dump_recipe, parse_mapping, parse_recipe, read_mapping
from kdcl_dist.config.reference import SECTIONS, Section, recipe_reference, recipe_schema
from kdcl_dist.errors import RecipeError

PAGE = ROOT / "docs/recipe.md"
SCHEMA = recipe_schema()
MODELS = {"Recipe": SCHEMA} | SCHEMA["$defs"]
FIELDS = [(model, name) for model, part in MODELS.items() for name in part["properties"]]
MINIMAL = "data: {train: a.arrow, test: b.arrow}\nstudents:\n  - {name: one, model: mlp}\n"


def is_valid(recipe: Any) -> bool:
    return Draft202012Validator(SCHEMA).is_valid(recipe)


def is_recipe(path: Path) -> bool:
    return "students" in (yaml.safe_load(path.read_text()) or {})


RECIPES = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if is_recipe(path))


def test_the_page_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(kdcl, ["recipe", "reference"])
    assert printed.exit_code == 0
    assert printed.output.encode() == PAGE.read_bytes(), (
        "make it anew: kdcl recipe reference > docs/recipe.md"
    )


def test_the_command_prints_the_schema() -> None:
    printed = CliRunner().invoke(kdcl, ["recipe", "schema"])
    assert printed.exit_code == 0
    assert json.loads(printed.output) == SCHEMA
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_every_field_has_a_short_description(model: str, name: str) -> None:
    description = MODELS[model]["properties"][name].get("description", "")
    assert description.endswith(".")
    assert description.count(". ") <= 1, "two sentences at most"
    assert "|" not in description


def rows_of(section: Section) -> dict[str, str]:
    """The default that the page shows for each field of a section."""
    table = recipe_reference().partition(f"{section.heading}\n")[2].partition("\n#")[0]
    cells = (line.split(" | ") for line in table.splitlines() if line.startswith("| `"))
    return {name.strip("| `"): default.strip("`") for name, _, default, _ in cells}


def test_every_model_has_a_table() -> None:
    assert sorted(section.model.__name__ for section in SECTIONS) == sorted(MODELS)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.heading)
def test_a_table_has_every_field_and_its_default(section: Section) -> None:
    rows, fields = rows_of(section), section.model.model_fields
    assert sorted(rows) == sorted(fields)
    assert next(iter(rows)) == "name" or "name" not in rows
    for name, field in fields.items():
        if field.is_required():
            assert rows[name] == "required"
        elif isinstance(field.default, Strict):
            kind = getattr(field.default, "name", None)
            assert rows[name] == ("{}" if kind is None else f"{{name: {kind}}}")
        else:
            assert parse_mapping(f"x: {rows[name]}")["x"] == field.default


def test_the_example_at_the_top_is_a_recipe() -> None:
    example = fences(PAGE.read_text())[0]
    assert parse_recipe(example).names == ["large", "mlp"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_recipes_fit_the_schema(path: Path) -> None:
    errors = [error.message for error in Draft202012Validator(SCHEMA).iter_errors(read_mapping(path))]
    assert errors == []


def test_there_are_recipes_to_validate() -> None:
    assert ROOT / "examples/digits.yaml" in RECIPES
    assert len(RECIPES) > 10


def test_a_complete_recipe_fits_the_schema() -> None:
    assert is_valid(yaml.safe_load(dump_recipe(parse_recipe(MINIMAL))))


@pytest.mark.parametrize(
    "override",
    [
        "students.one.optimizer={lr: 0.05}",
        "students.one.optimizer={name: adam, beta1: 0.8}",
        "students.one.optimizer={name: adamw}",
        "students.one.schedule={warmup_epochs: 2}",
        "students.one.schedule={name: constant}",
        "students.one.schedule={name: cosine, warmup_lr: 1e-3}",
        "students.one.schedule={milestones: [2, 3], gamma: 0.5}",
        "students.one.augment=[{name: RandomCrop, size: 32}]",
        "students.one.model={name: 'timm:resnet18', drop_rate: 0.1}",
        "students.one.optimizer={layer_decay: 0.7}",
        "distillation.window=epoch",
        "distillation.window=8",
        "students.one.resources.gpu=auto",
        "students.one.resources.gpu=0.5",
        "distillation.bank={folder: bank, top_k: 5}",
        "data.classes=[cat, dog]",
    ],
)
def test_the_schema_accepts_what_a_recipe_may_hold(override: str) -> None:
    parse_recipe(MINIMAL, [override])
    assert is_valid(overridden(override))


@pytest.mark.parametrize(
    "override",
    [
        "epohcs=3",
        "epochs=two",
        "epochs=1.5",
        "epochs=0",
        "epochs=true",
        "seed=-1",
        "batch_size=null",
        "distillation.method=best",
        "distillation.temperature=0",
        "distillation.window=none",
        "students=[]",
        "students.one.name=a/b",
        "students.one.model=3",
        "students.one.model={depth: 3}",
        "students.one.optimizer={layer_decay: 1.5}",
        "students.one.optimizer.name=lyon",
        "students.one.optimizer={name: sgd, beta1: 0.9}",
        "students.one.optimizer={beta1: 0.9}",
        "students.one.schedule={name: constant, milestones: [2]}",
        "students.one.resources.gpu=2",
        "students.one.resources.gpu=all",
        "data.augment=[{degrees: 5}]",
        "data.classes=[cat]",
        "data=3",
    ],
)
def test_the_schema_refuses_what_a_recipe_refuses(override: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(MINIMAL, [override])
    assert not is_valid(overridden(override))


def overridden(override: str) -> dict[str, Any]:
    return parse_mapping(MINIMAL, [override])


def test_the_schema_has_the_models_defaults() -> None:
    for section in SECTIONS:
        part = MODELS[section.model.__name__]["properties"]
        for name, field in section.model.model_fields.items():
            assert ("default" in part[name]) == (not field.is_required()), name
    student = {"name": "one", "model": "mlp"}
    recipe = Recipe.model_validate({"data": {"train": "a", "test": "b"}, "students": [student]})
    written = recipe.model_dump(mode="json")
    assert {name: field["default"] for name, field in SCHEMA["properties"].items() if "default" in field} == {
        name: value for name, value in written.items() if name not in ("data", "students")
    }
