"""A recipe whose cohort changes while it is trained: what it says once a student has joined, or has left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kdcl_dist.config.error_text import describe_errors
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.stored_imports import import_strings
from kdcl_dist.config.student import Student
from kdcl_dist.errors import RecipeError

__all__ = ["foreign_imports", "with_student", "without_student"]


def with_student(recipe: Recipe, fields: Mapping[str, Any], epoch: int) -> Recipe:
    """The recipe with one more student, the last, that takes part from an epoch on.

    Args:
        recipe: of the run.
        fields: of the student, as in a recipe.
        epoch: its first, from 1.

    Raises:
        RecipeError: the student does not fit the recipe, or imports what the recipe does not: a request lies
            in the run folder, to which others may be able to write.
    """
    if "from_epoch" in fields:
        raise RecipeError("from_epoch: a student that is added joins after the next checkpoint; leave it out")
    if fields.get("logits") is not None:
        raise RecipeError("logits: a file takes part in all epochs of a run: name it in a new run's recipe")
    found = _made(recipe, [*_students(recipe), {**fields, "from_epoch": epoch}])
    _check_steps(recipe, found.students[-1])
    if foreign := foreign_imports(found, recipe):
        raise RecipeError(foreign)
    return found


def without_student(recipe: Recipe, name: str, epoch: int) -> Recipe:
    """The recipe with a student that takes part until an epoch; its learning rate stays as it was.

    Args:
        recipe: of the run.
        name: of the student.
        epoch: its last, from 1.

    Raises:
        RecipeError: there is no such student, it does not take part in that epoch, or the others cannot go on
            without it.
    """
    if name not in recipe.names:
        raise RecipeError(f"no student is named {name!r} (have {', '.join(recipe.names)})")
    index = recipe.names.index(name)
    student, students = recipe.students[index], _students(recipe)
    if student.logits is not None:
        raise RecipeError(f"student {name!r} is a file of logits, which takes part in all epochs of a run")
    if not student.takes_part(epoch - 1):
        when = "has left" if student.has_left(epoch - 1) else "has not joined yet"
        raise RecipeError(f"student {name!r} {when}")
    if epoch >= recipe.epochs:
        raise RecipeError(f"student {name!r} cannot leave any more: epoch {epoch} is the last of the run")
    if epoch == student.until_epoch:
        raise RecipeError(f"student {name!r} leaves after epoch {epoch} already")
    learns = {} if recipe.is_frozen(student) else {"epochs": recipe.epochs_of(student)}
    students[index] |= {"until_epoch": epoch, **learns}
    return _made(recipe, students)


def foreign_imports(found: Recipe, recipe: Recipe) -> str | None:
    """What is wrong with a recipe that imports, or asks of servers, what that of the run does not."""
    if foreign := sorted(import_strings(found) - import_strings(recipe)):
        return f"{foreign[0]!r} is not among the import strings and servers of the run's recipe"
    return None


def _check_steps(recipe: Recipe, student: Student) -> None:
    """See that an epoch has as many steps with one more student: the one that sees most decides how many."""
    if all(each.sees_part and each.data != student.data for each in recipe.students):
        raise RecipeError(
            f"students.{student.name}.data: all students of the run see their own samples only, so with "
            "other samples an epoch could have more steps: give it the data of one of them"
        )


def _students(recipe: Recipe) -> list[dict[str, Any]]:
    return [student.model_dump(mode="json") for student in recipe.students]


def _made(recipe: Recipe, students: list[dict[str, Any]]) -> Recipe:
    try:
        return Recipe.model_validate(recipe.model_dump(mode="json") | {"students": students})
    except ValidationError as error:
        raise RecipeError(describe_errors(error, Recipe)) from None
