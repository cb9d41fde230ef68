"""Recipes as YAML: loading, overriding by path, writing, and comparing two of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from kdcl_dist.errors import RecipeError, one_line
from kdcl_dist.recipe import Recipe

__all__ = [
    "describe_errors",
    "differences",
    "dump_recipe",
    "load_recipe",
    "parse_mapping",
    "parse_recipe",
    "read_mapping",
    "roundings",
]

#: Fields that may change between a run and its resumption, since no result depends on them.
FREE_FIELDS = (
    "name",
    "checkpoint",
    "analysis",
    "failure",
    "limits",
    "data.loader_workers",
    "distillation.bank.folder",
)
#: Fields that may change too, but sums are then taken in another order: results differ in the last bits.
ROUNDING_FIELDS = (
    "students.*.resources",
    "students.*.accelerator",
    "students.*.channels_last",
    "students.*.compile",
)

MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 5e-4 is a number, and a key given twice is a mistake.

    `<<: *anchor` takes up the fields of another mapping, as in YAML 1.1; fields beside it go first.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.checked: set[int] = set()  # ids of nodes, which all live as long as the document's

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Called before a mapping is built, and again whenever another takes up its fields. The first call
        # puts the fields taken up among its own, after which a field given on top of them stands twice.
        if id(node) not in self.checked:
            self._refuse_twice(node)
            self.checked.add(id(node))
        super().flatten_mapping(node)

    def _refuse_twice(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.tag if key_node.tag == MERGE else self.construct_object(key_node, deep=True)
            if str(key) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {key!r} is given twice", key_node.start_mark
                )
            seen.add(str(key))


def _replace_resolvers() -> None:
    """Numbers as in YAML 1.2: 5e-4 is one; 1:30 (ninety in YAML 1.1), 0o17 and dates are text."""
    own = {
        "int": r"[-+]?(0|[1-9][0-9_]*)",
        "float": r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.inf|\.nan",
    }
    dropped = {f"tag:yaml.org,2002:{name}" for name in (*own, "timestamp")}
    _Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in dropped]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for name, pattern in own.items():
        tag, anchored = f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$")
        _Loader.add_implicit_resolver(tag, anchored, list("-+.0123456789"))


_replace_resolvers()


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: the file.
        overrides: `path=value` items, as `--set` takes them: `epochs=3`, `students.0.optimizer.lr=0.05`,
            `students.small.seed=null`. Values are YAML; `students.small=null` leaves an item of a list out.

    Raises:
        RecipeError: the file is missing or is not YAML, or a field is unknown or impossible.
    """
    return parse_recipe(_read(path), overrides, source=str(path))


def read_mapping(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A YAML file whose content is a mapping of fields; overrides and errors as `load_recipe`."""
    return parse_mapping(_read(path), overrides, str(path))


def parse_mapping(text: str, overrides: Iterable[str] = (), source: str = "recipe") -> dict[str, Any]:
    """A mapping of fields from YAML text; arguments and errors as `load_recipe`."""
    data = _parse_mapping(text, source)
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
    """The complete recipe as YAML, all defaults written out; `parse_recipe` gives the same recipe back."""
    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110))


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What makes `new` another run than `old`, one `path: old -> new` each.

    `FREE_FIELDS` and `ROUNDING_FIELDS` are left out.
    """
    return [line for path, line in _changes(old, new) if not _is_one_of(path, FREE_FIELDS + ROUNDING_FIELDS)]


def roundings(old: Recipe, new: Recipe) -> list[str]:
    """Changes of `ROUNDING_FIELDS`, one `path: old -> new` each."""
    return [line for path, line in _changes(old, new) if _is_one_of(path, ROUNDING_FIELDS)]


def _changes(old: Recipe, new: Recipe) -> list[tuple[str, str]]:
    left, right = (dict(_leaves(recipe.model_dump(mode="json"))) for recipe in (old, new))
    missing = "(absent)"
    return [
        (path, f"{path}: {left.get(path, missing)!r} -> {right.get(path, missing)!r}")
        for path in sorted(left.keys() | right.keys())
        if left.get(path, missing) != right.get(path, missing)
    ]


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """All that is wrong, in one line: path, message and value of each."""
    return "; ".join(_describe(error, model))


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{str(path)!r} cannot be read: {one_line(error)}") from error


def _parse_mapping(text: str, source: str) -> dict[str, Any]:
    try:
        data = _unshared(_parse_yaml(text, source))
    except RecursionError:
        raise RecipeError(f"{source}: nested too deeply, or a field contains itself by its alias") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: a mapping of fields is needed (got {type(data).__name__})")
    return data


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{source}:{line} not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{source}: not valid YAML: {one_line(error)}") from None
    except RecursionError:
        raise RecipeError(f"{source}: nested too deeply") from None


def _unshared(value: Any) -> Any:
    """A copy in which an anchor and its aliases are parts of their own: overriding one leaves the others."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override!r}: must have the form path=value, such as epochs=3")
    *parents, last = path.split(".")
    node: Any = data
    for key in parents:
        node = _child(node, key, override)
    value = _parse_yaml(text, f"--set {override!r}")
    if isinstance(node, list):
        place = _position(node, last, override)
        node[place : place + 1] = [] if value is None else [value]
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"--set {override!r}: {'.'.join(parents)} has no fields (it is {node!r})")


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, key, override)]
    if isinstance(node, dict):
        if node.get(key) is None:
            node[key] = {}
        return node[key]
    raise RecipeError(f"--set {override!r}: nothing lies below {key!r} (it is inside {node!r})")


def _position(items: list[Any], key: str, override: str) -> int:
    """The place of a list item given by number, or by its `name` field."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    known = ", ".join(str(name) for name in names if name is not None)
    raise RecipeError(
        f"--set {override!r}: no item {key!r} in a list of {len(items)} (names: {known or 'none'})"
    )


def _describe(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"] if part not in _BRANCHES)
        message, value = item["msg"].removeprefix("Value error, "), item["input"]
        if item["type"] == "extra_forbidden":
            message = f"unknown field here{_suggestion(str(item['loc'][-1]), model)}"
        shown = f" (got {_short(value)})" if item["type"] != "missing" and not _is_section(value) else ""
        found.setdefault((path, shown), []).append(message)
    for (path, shown), messages in found.items():
        text = " or ".join([messages[0], *(each.removeprefix("Input should be ") for each in messages[1:])])
        yield f"{path}: {text}{shown}" if path else f"{text}{shown}"


#: What pydantic puts into a path for the branch of a union; no field of a recipe is called so.
_BRANCHES = (
    *("sgd", "adam", "adamw", "constant", "multistep", "cosine"),
    *("constrained-int", "literal['epoch']"),
)


def _is_section(value: Any) -> bool:
    return isinstance(value, (dict, BaseModel))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggestion(field: str, model: type[BaseModel]) -> str:
    close = difflib.get_close_matches(field, sorted(_field_names(model)), n=1)
    return f", did you mean {close[0]!r}?" if close and close[0] != field else ""


def _field_names(model: type[BaseModel]) -> set[str]:
    """All field names at any depth of a model."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", {})}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if not children:
        yield path, value
        return
    for key, child in children:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))


def _is_one_of(path: str, fields: Iterable[str]) -> bool:
    generic = re.sub(r"^students\.\d+\.", "students.*.", path)
    return any(generic == field or generic.startswith(field + ".") for field in fields)
