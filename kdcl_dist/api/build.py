"""A recipe of what a call in Python names: networks and data sets by objects, fields by keywords."""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from kdcl_dist.config.data import Data
from kdcl_dist.config.distillation import Distillation
from kdcl_dist.config.error_text import describe_errors
from kdcl_dist.config.model import Model
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.student import NO_MODEL
from kdcl_dist.config.student import Student as StudentFields
from kdcl_dist.errors import RecipeError
from kdcl_dist.utils.objects import MODULE, Copied, Given

__all__ = ["DataSets", "Network", "Student", "build_recipe", "name_objects"]

#: A network: an object, a function or class that makes it, or the field `model` of a recipe.
Network = Any
#: Training and test set, and a validation set if there is one; or the fields of the section `data`.
DataSets = Sequence[Any] | Mapping[str, Any]

#: The names of data sets in the order of a tuple.
SETS = ("train", "test", "val")
#: What a student learns with unless the caller says otherwise: it suits networks of any kind.
DEFAULTS: dict[str, dict[str, Any]] = {
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "schedule": {"name": "cosine"},
}


class Student:
    """One student of `train(students=...)`.

    Args:
        model: the network: a `torch.nn.Module`, which begins with its very weights; a function or class that
            makes one, which begins with weights by the student's seed; or the name of a network in a recipe.
            None of a student with `logits`, a file.
        fields: fields of the student by their names in a recipe, such as `optimizer={"lr": 0.01}`.
    """

    def __init__(self, model: Network = NO_MODEL, **fields: Any) -> None:
        self.model, self.fields = model, fields

    def __repr__(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self.fields.items())
        return f"Student({self.model!r}{given})"


class _Names:
    """Gives objects their strings in the recipe."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def add(self, hint: str, value: Any) -> str:
        """The string of a new object, of letters of the hint."""
        stem = re.sub(r"\W", "_", f"_{hint}" if hint[:1].isdigit() else hint, flags=re.ASCII)
        text, number = f"{MODULE}:{stem}", 1
        while text in self.objects:
            number += 1
            text = f"{MODULE}:{stem}_{number}"
        self.objects[text] = value
        return text

    def network(self, name: str, network: Network) -> Any:
        """The field `model` of a student."""
        from torch import nn  # not at the top: the names of this module are light

        if isinstance(network, str | Mapping | Model):
            return _plain(network)
        if isinstance(network, nn.Module):
            return self.add(name, Copied(copy.deepcopy(network).cpu()))
        if callable(network):
            return self.add(name, network)
        raise RecipeError(
            f"students[{name!r}]: must be a torch.nn.Module, a function or class that makes one, the name of "
            f"a network, or a Student (got {type(network).__name__})"
        )

    def data_set(self, name: str, data_set: Any) -> str | None:
        """The field of a data set."""
        if data_set is None or isinstance(data_set, str | os.PathLike):
            return None if data_set is None else os.fspath(data_set)
        return self.add(f"{name}_set", data_set if _makes(data_set) else Given(data_set))


def _makes(data_set: Any) -> bool:
    """Whether it is a function or class that makes a data set, and none itself."""
    return callable(data_set) and not hasattr(data_set, "__getitem__") and not hasattr(data_set, "labels")


def name_objects(
    students: Mapping[str, Network | Student] | None, data: DataSets | None
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The fields of the students and of the data, and the objects by the strings that name them there.

    Args:
        students: by their names.
        data: see `DataSets`; None for none.

    Raises:
        RecipeError: something is of no kind that `train` takes.
    """
    names = _Names()
    items = []
    for name, given in (students or {}).items():
        student = given if isinstance(given, Student) else Student(given)
        items.append({"name": name, "model": names.network(name, student.model)} | _plain(student.fields))
    sets = data if isinstance(data, Mapping) else dict(zip(SETS, _sequence(data), strict=False))
    fields = {
        name: names.data_set(name, value) if name in SETS else _plain(value) for name, value in sets.items()
    }
    return items, fields, names.objects


def _sequence(data: Any) -> Sequence[Any]:
    if data is None:
        return ()
    if not isinstance(data, list | tuple) or not 2 <= len(data) <= len(SETS):
        raise RecipeError(
            "data: must be (training set, test set), with a validation set after them if there is one, or a "
            f"mapping with train and test (got {type(data).__name__})"
        )
    return data


def build_recipe(
    students: Mapping[str, Network | Student], data: DataSets, fields: Mapping[str, Any]
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a call, and its objects by the strings that name them there.

    Args:
        students: by their names.
        data: see `DataSets`.
        fields: of the recipe, of its sections `data` and `distillation`, and of all students, by their names.

    Raises:
        RecipeError: a field is unknown or has an impossible value.
    """
    items, sets, objects = name_objects(students, data)
    parts = _sorted(fields)
    section = {**sets, **parts[Data]}
    recipe = parts[Recipe] | {
        "data": section,
        "distillation": {**parts[Recipe].get("distillation", {}), **parts[Distillation]},
        "students": [
            item if "logits" in item else _student({**parts[StudentFields], **item}) for item in items
        ],
    }
    if section.get("val") is not None or section.get("val_fraction") is not None:
        recipe["checkpoint"] = {"best": "top1"} | recipe.get("checkpoint", {})
    try:
        return Recipe.model_validate(recipe), objects
    except ValidationError as error:
        raise RecipeError(f"train(): {describe_errors(error, Recipe)}") from None


#: The keywords of each part of a recipe; a name that two parts have is that of the first.
PARTS: dict[type[BaseModel], frozenset[str]] = {
    Recipe: frozenset(Recipe.model_fields) - {"data", "students"},
    Data: frozenset(Data.model_fields) - {*SETS},
    Distillation: frozenset(Distillation.model_fields),
    StudentFields: frozenset(StudentFields.model_fields) - {"name", "model"},
}


def _sorted(fields: Mapping[str, Any]) -> dict[type[BaseModel], dict[str, Any]]:
    """The keywords of a call by the part of the recipe that has them."""
    found: dict[type[BaseModel], dict[str, Any]] = {part: {} for part in PARTS}
    for name, value in fields.items():
        part = next((part for part, names in PARTS.items() if name in names), None)
        if part is None:
            close = difflib.get_close_matches(name, sorted(frozenset().union(*PARTS.values())), n=1)
            hint = f": did you mean {close[0]!r}?" if close else "; docs/recipe.md has all"
            raise RecipeError(f"train() has no keyword {name!r}, and no recipe has such a field{hint}")
        found[part][name] = _plain(value)
    return found


def _student(fields: dict[str, Any]) -> dict[str, Any]:
    """A student's fields, with this module's defaults in place of a recipe's."""
    return fields | {name: _kind(fields.get(name), default) for name, default in DEFAULTS.items()}


def _kind(given: Any, default: Mapping[str, Any]) -> Any:
    """A part with a name: the default, maybe with other fields, or another kind."""
    given = {"name": given} if isinstance(given, str) else given or {}
    same = isinstance(given, dict) and given.get("name", default["name"]) == default["name"]
    return {**default, **given} if same else given


def _plain(value: Any) -> Any:
    """A value as YAML would give it."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
