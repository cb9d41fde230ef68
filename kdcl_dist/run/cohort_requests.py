"""Requests to change the cohort of a run that trains: a file each in the run folder, until they are met.

The coordinator looks for them when it has taken the checkpoint at an epoch's end. The launcher then writes
the recipe that has them, and the run goes on with it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from kdcl_dist.config.cohort_changes import with_student, without_student
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import RecipeError, RunFolderError, StorageError, one_line
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.creation import new_id
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run, write_recipe
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.process import this_process

__all__ = ["Request", "apply", "ask", "changed", "has_requests", "is_changing"]

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


def has_requests(folder: Folder) -> bool:
    """Whether a run has requests that are not met; a storage that fails is asked again later."""
    try:
        return bool(_names(folder))
    except StorageError:
        return False


def apply(recipe: Recipe, request: Mapping[str, Any], epoch: int) -> Recipe:
    """The recipe that meets a request after so many epochs.

    Raises:
        RecipeError: the request does not fit it.
    """
    if "add" in request:
        return with_student(recipe, request["add"], epoch + 1)
    return without_student(recipe, request["remove"], epoch)


def is_changing(run: Run) -> bool:
    """Whether the run has stopped for the requests that it has."""
    return read_record(run.folder).get("state") == "changing"


def changed(run: Run, tell: Callable[[str], None]) -> Run:
    """The run as it goes on: with the recipe that meets the requests, which are deleted.

    Args:
        run: that has stopped for them, at an epoch's end.
        tell: takes a line for each request, met or refused.

    Raises:
        RunFolderError: the last checkpoint was deleted or damaged meanwhile.
    """
    if (start := latest(run.folder, tell)) is None:
        raise RunFolderError(f"{str(run.folder)!r} has no complete checkpoint any more")
    recipe, names = run.recipe, _names(run.folder)
    for name in names:
        try:
            request = _REQUEST.validate_json(run.folder.read(f"{ROOT}/{name}", MAX_BYTES))
            recipe = apply(recipe, request, start.epoch)
        except (RecipeError, ValidationError, ValueError, KeyError, OSError) as error:
            tell(f"a request to change the cohort is refused: {one_line(error)}")
        else:
            asked = request.get("remove") or request["add"].get("name")
            tell(f"{asked} {'leaves' if 'remove' in request else 'joins'} after epoch {start.epoch}")
    write_recipe(run.folder, recipe)
    for name in names:
        run.folder.delete_file(f"{ROOT}/{name}")
    new = replace(run, recipe=recipe, id=new_id(run.name), start=start)
    update_record(run.folder, state="starting", owner=new.id, launcher=this_process())
    return new


def _names(folder: Folder) -> list[str]:
    return sorted(name for name in folder.names(ROOT) if name.endswith(".json"))
