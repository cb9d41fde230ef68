"""Recipes as YAML: reading, overriding by path, and writing."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdcl_dist.config.error_text import describe_errors
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.strict_yaml import MAX_BYTES, MAX_DEPTH, load_mapping, load_yaml
from kdcl_dist.errors import RecipeError, one_line
from kdcl_dist.utils.files import read_regular

__all__ = ["dump_recipe", "file_digest", "load_recipe", "parse_mapping", "parse_recipe", "read_mapping"]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: the file.
        overrides: `path=value` items, as `--set` takes them: `epochs=3`, `students.0.optimizer.lr=0.05`,
            `students.small.seed=null`. The values are YAML; `students.small=null` removes an item of a list.

    Raises:
        RecipeError: the file is missing or is not YAML, or a field is unknown or has an impossible value.
    """
    return parse_recipe(_read(path), overrides, source=str(path))


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a recipe file's text; raises `RecipeError` when it cannot be read."""
    return hashlib.sha256(_read(path).encode()).hexdigest()


def read_mapping(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a mapping of fields from a YAML file; overrides and errors as `load_recipe`."""
    return parse_mapping(_read(path), overrides, str(path))


def parse_mapping(text: str, overrides: Iterable[str] = (), source: str = "recipe") -> dict[str, Any]:
    """Read a mapping of fields from YAML text; arguments and errors as `load_recipe`."""
    data = load_mapping(text, source)
    for override in overrides:
        _override(data, override)
    return data


def parse_recipe(text: str, overrides: Iterable[str] = (), source: str = "recipe") -> Recipe:
    """Read a recipe from YAML text; arguments and errors as `load_recipe`."""
    data = parse_mapping(text, overrides, source)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{source}: {describe_errors(error, Recipe)}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The complete recipe as YAML, with all defaults; `parse_recipe` is the inverse."""
    return str(recipe)


def _read(path: str | Path) -> str:
    try:
        data = read_regular(Path(path), MAX_BYTES)
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()  # any line ends, as in a text file
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{str(path)!r} cannot be read: {one_line(error)}") from error
    except ValueError as error:
        raise RecipeError(f"{str(path)!r} cannot be read: {error}") from error


def _override(data: dict[str, Any], override: str) -> None:
    """Apply one `path=value` to a mapping of fields, in place."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override!r}: must have the form path=value, such as epochs=3")
    *parents, last = path.split(".")
    if len(parents) >= MAX_DEPTH:
        raise RecipeError(f"--set {override[:40]!r}...: a path of more than {MAX_DEPTH} parts")
    node: Any = data
    for key in parents:
        node = _child(node, key, override)
    value = load_yaml(text, f"--set {override!r}")
    if isinstance(node, list):
        index = _index(node, last, override)
        node[index : index + 1] = [] if value is None else [value]
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"--set {override!r}: {'.'.join(parents)} has no fields (it is {node!r})")


def _child(node: Any, key: str, override: str) -> Any:
    """The node below a key; a section that is absent is created."""
    if isinstance(node, list):
        return node[_index(node, key, override)]
    if isinstance(node, dict):
        if node.get(key) is None:
            node[key] = {}
        return node[key]
    raise RecipeError(f"--set {override!r}: nothing lies below {key!r} (it is inside {node!r})")


def _index(items: list[Any], key: str, override: str) -> int:
    """The index of a list item, given by its `name` field or by its number."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    known = ", ".join(str(name) for name in names if name is not None)
    raise RecipeError(
        f"--set {override!r}: no item {key!r} in a list of {len(items)} (names: {known or 'none'})"
    )
