"""Import strings and servers in stored text, of a run folder or an export: refused unless allowed.

A recipe that a user hands to a command is the user's own word. A run folder or an export may come from
someone else: importing what it names would run that person's code, and a server that it names would get the
samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from kdcl_dist.config.model import Model, is_url
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import ImportRefused
from kdcl_dist.utils.data_specs import data_import
from kdcl_dist.utils.import_strings import is_import_string, load_object, names_object
from kdcl_dist.utils.objects import knows, not_passed

__all__ = ["check_recipe_imports", "check_stored_imports", "import_strings", "transform_imports"]


def check_recipe_imports(
    recipe: Recipe, where: str, allowed: Collection[str], students: Collection[str] | None = None
) -> None:
    """Refuse a stored recipe that names code outside this package, or a server.

    Args:
        recipe: the stored recipe.
        where, allowed: see `check_stored_imports`.
        students: the students whose networks are built. None: all.

    Raises:
        ImportRefused: as `check_stored_imports`.
    """
    built = recipe.names if students is None else students
    check_stored_imports(dict(_fields(recipe, built)), where, allowed)


def check_stored_imports(fields: Mapping[str, str], where: str, allowed: Collection[str]) -> None:
    """Refuse import strings of modules, and servers, that the user does not allow.

    Args:
        fields: the text of each field that may be an import string or a URL, by the field's path.
        where: the run folder or export, for the error.
        allowed: names of modules; what lies below an allowed package is allowed too. And URLs.

    Raises:
        ImportRefused: a field names a module or a server outside `allowed`, or an object that the caller has
            not passed.
    """
    for path, text in fields.items():
        if is_url(text) and text not in allowed:
            raise ImportRefused(
                f"{where}: {path}: the server {text} would get the samples, and a run folder may come from "
                f"someone else; if you trust both, add --allow-imports {text}"
            )
        if not is_import_string(text) or knows(text):
            continue
        if names_object(text):
            raise ImportRefused(f"{where}: {path}: {not_passed(text)}")
        # An allowed module can reach others: `my_nets:torch.os.system` is code of os, not of my_nets.
        module = text.partition(":")[0]
        if _is_allowed(module, allowed):
            module = _origin(text) or module
        if not _is_allowed(module, allowed):
            raise ImportRefused(
                f"{where}: {path}: {text!r} would run code of the module {module!r}, and a run folder or an "
                f"export may come from someone else; if you trust it, add --allow-imports {module}, or "
                f"allow_imports=[{module!r}] in Python"
            )


def import_strings(recipe: Recipe) -> set[str]:
    """All import strings of a recipe, and the URLs of its servers."""
    parts = [part.name for each in recipe.students for part in (each.optimizer, each.schedule)]
    fields = [text for _, text in _fields(recipe, recipe.names)]
    texts = [
        recipe.distillation.method_name,
        recipe.distillation.loss.name,
        *recipe.trackers,
        *parts,
        *fields,
    ]
    return {text for text in texts if is_import_string(text) or is_url(text)}


def _is_allowed(module: str, allowed: Collection[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def _origin(text: str) -> str | None:
    """The module that defines what an import string names; None if it cannot be imported."""
    try:
        found = load_object(text)
    except ImportError:  # told where the object is needed
        return None
    while isinstance(found, partial):
        found = found.func
    own = isinstance(found, (type, FunctionType, BuiltinFunctionType, MethodType))
    module: str | None = (found if own else type(found)).__module__
    return module


def transform_imports(path: str, items: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The path and the name of each transform of a list."""
    for position, item in enumerate(items):
        yield f"{path}.{position}.name", str(item["name"])


def _fields(recipe: Recipe, built: Collection[str]) -> Iterator[tuple[str, str]]:
    """The path and the text of each field that an evaluation may import; optimisers only train."""
    data = recipe.data
    for name, spec in data.sets.items():
        if data_import(spec) is not None:
            yield f"data.{name}", spec
    yield from transform_imports("data.augment", [transform.item() for transform in data.augment])
    yield from transform_imports("data.test_view", data.test_items)
    if isinstance(data.collate, str):
        yield "data.collate", data.collate
    for student in recipe.students:
        path = f"students.{student.name}"
        model = Model.of(student.model)  # a library's network is known code with plain arguments
        if student.name in built and (model.import_string is not None or is_url(model)):
            yield f"{path}.model", model.name
        yield from transform_imports(f"{path}.augment", [each.item() for each in student.augment or ()])
