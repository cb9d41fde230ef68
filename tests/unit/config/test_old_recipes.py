"""Recipes of version 0.1.0 are recipes, and their fields mean what they meant."""

from __future__ import annotations

from typing import Any

import yaml
from cohorts import ROOT

from kdcl_dist.config.recipe_file import load_recipe, parse_recipe

FILE = ROOT / "tests" / "golden" / "recipe-0.1.0.yaml"
#: The one default that is another today; docs/stability.md says so.
CHANGED = {("students", 0, "resources", "gpu"): "auto"}


def values(part: Any, *path: str | int) -> dict[tuple[str | int, ...], Any]:
    """Each value of nested mappings and lists by its path."""
    if isinstance(part, dict) and part:
        items: Any = part.items()
    elif isinstance(part, list) and part:
        items = enumerate(part)
    else:
        return {path: part}
    return {key: value for name, child in items for key, value in values(child, *path, name).items()}


def test_every_field_of_an_old_recipe_has_its_value() -> None:
    old = values(yaml.safe_load(FILE.read_text()))
    new = values(load_recipe(str(FILE)).model_dump(mode="json"))
    assert len(old) > 50
    assert {path: new.get(path, "missing") for path in old} == old


def test_every_default_is_the_old_one() -> None:
    old = values(yaml.safe_load(FILE.read_text()))
    short = "{data: {train: data/train, test: data/test}, students: [{name: a, model: cnn_small}]}"
    new = values(parse_recipe(short).model_dump(mode="json"))
    assert {path: new.get(path, "missing") for path in old} == old | CHANGED
