"""Requests to change the cohort of a run that trains: a file each in the run folder, until they are met.

The coordinator meets them; see `kdcl_dist.coordinator.live_change`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from kdcl_dist.config.cohort_changes import foreign_imports, with_student, without_student
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import KdclError, RecipeError, RunFolderError, StorageError, one_line
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run, load_run, write_recipe
from kdcl_dist.run.storage import Folder

__all__ = [
    "Request",
    "apply",
    "as_begun",
    "ask",
    "begin",
    "names_of",
    "next_change",
    "read",
    "requested",
    "told",
    "withdraw",
]

#: The folder of the requests in the run folder.
ROOT = "cohort"
#: Bytes of the largest request that is read.
MAX_BYTES = 1_000_000


class Request(TypedDict, total=False):
    """What is asked for: the fields of a student to add, or the name of one to remove."""

    add: dict[str, Any]
    remove: str


_REQUEST = TypeAdapter(Request)


def ask(folder: Folder, request: Request) -> None:
    """Write a request, after all earlier ones; raises `StorageError` where the storage refuses."""
    name = f"{ROOT}/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
    folder.write(name, json.dumps(request).encode())


def names_of(folder: Folder) -> list[str]:
    """The names of the files of the requests that are not met, in their order.

    Raises:
        StorageError: the storage refuses, or a file has the place of their folder: a running process treats
            both alike.
    """
    try:
        return sorted(name for name in folder.names(ROOT) if name.endswith(".json"))
    except RunFolderError as error:
        raise StorageError(error.message) from error


def read(folder: Folder, name: str) -> Request:
    """The request in the file of a name.

    Raises:
        RecipeError: it is none, or cannot be read.
    """
    try:
        return _REQUEST.validate_json(folder.read(f"{ROOT}/{name}", MAX_BYTES))
    except (ValidationError, ValueError, OSError) as error:
        raise RecipeError(one_line(error)) from error


def withdraw(folder: Folder, *names: str, student: str | None = None) -> None:
    """Delete the files of some names, and those that ask for a student to join.

    Raises:
        StorageError: the storage refuses.
    """
    asks = [name for name in names_of(folder) if student is not None and _adds(folder, name) == student]
    for name in (*names, *asks):
        folder.delete_file(f"{ROOT}/{name}")


def _adds(folder: Folder, name: str) -> str | None:
    with suppress(RecipeError):
        return str(read(folder, name).get("add", {}).get("name"))
    return None


def begin(run: Run, met: Collection[str]) -> None:
    """Let a run that trains go on with its recipe, which meets the requests in the files of some names.

    Raises:
        StorageError: the storage refuses; the run goes on with the recipe before.
    """
    update_record(run.folder, recipe_of=run.id)  # before the recipe, which is then begun
    write_recipe(run.folder, run.recipe)
    with suppress(StorageError):  # a file that stays is refused, since its request is met
        withdraw(run.folder, *met)


def as_begun(run: Run) -> Run:
    """The run with the recipe with which it goes on; see `begin`. A coordinator that died may have begun it.

    Raises:
        RunFolderError, RecipeError: recipe.yaml was damaged meanwhile, or imports what the run does not:
            others may be able to write to the run folder.
    """
    if read_record(run.folder).get("recipe_of") != run.id:
        return run
    recipe = load_run(run.folder.uri)[0]
    if foreign := foreign_imports(recipe, run.recipe):
        raise RecipeError(f"{run.folder}/recipe.yaml was changed while the run trains: {foreign}")
    return replace(run, recipe=recipe)


def told(what: Request | KdclError, epoch: int = 0) -> str:
    """A line on a request that is met after so many epochs, or on why it is refused."""
    if isinstance(what, KdclError):
        return f"a request to change the cohort is refused: {what}"
    if "add" in what:
        return f"{what['add'].get('name')} joins after epoch {epoch}"
    return f"{what['remove']} leaves after epoch {epoch}"


def apply(recipe: Recipe, request: Mapping[str, Any], epoch: int) -> Recipe:
    """The recipe that meets a request after so many epochs.

    Raises:
        RecipeError: the request does not fit it.
    """
    if "add" in request:
        return with_student(recipe, request["add"], epoch + 1)
    if "remove" in request:
        return without_student(recipe, request["remove"], epoch)
    raise RecipeError("it asks neither to add a student nor to remove one")


def next_change(recipe: Recipe, done: int) -> int:
    """The epoch, from 1, after which a run of which so many epochs are done can change its cohort.

    Raises:
        RecipeError: there is none, since the last epoch trains.
    """
    if done + 1 >= recipe.epochs:
        raise RecipeError(
            f"the run trains its last epoch, {recipe.epochs}: the cohort cannot change any more"
        )
    return done + 1


def requested(recipe: Recipe, folder: Folder, epoch: int) -> Recipe:
    """The recipe with the requests that are not met yet, as if after so many epochs; bad ones left out."""
    for name in names_of(folder):
        with suppress(RecipeError, StorageError):
            recipe = apply(recipe, read(folder, name), epoch)
    return recipe
