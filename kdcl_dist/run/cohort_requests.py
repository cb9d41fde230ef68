"""Requests to change the cohort of a run that trains: a file each in the run folder, until they are met.

The coordinator looks for them when it has taken the checkpoint at an epoch's end. The launcher then writes
the recipe that has them, and the run goes on with it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from kdcl_dist.config.cohort_changes import with_student, without_student
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import RunSchedule
from kdcl_dist.errors import KdclError, RecipeError, RunFolderError, StorageError, one_line
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.creation import new_id
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run, write_recipe
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.process import this_process

__all__ = [
    "Request",
    "apply",
    "ask",
    "changed",
    "has_requests",
    "is_changing",
    "next_change",
    "requested",
    "unchanged",
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


def next_change(recipe: Recipe, done: int) -> int:
    """The epoch, from 1, after which a run of which so many epochs are done can change its cohort.

    Raises:
        RecipeError: there is none, since no checkpoint at an epoch's end is left but the last.
    """
    checkpoint, evaluate = recipe.checkpoint, recipe.evaluate
    schedule = RunSchedule(
        epochs=recipe.epochs,
        steps_per_epoch=1,
        holdout_batches=0,
        test_batches=0,
        checkpoint_epochs=checkpoint.every_epochs,
        evaluate_epochs=evaluate.every_epochs,
        best=checkpoint.best is not None,
        changes=recipe.changes,
    )
    for epoch in range(done + 1, recipe.epochs):
        if schedule.saves(epoch - 1):
            return epoch
    raise RecipeError(
        f"no checkpoint follows at an epoch's end but that of the last epoch, {recipe.epochs} "
        f"(checkpoint.every_epochs is {checkpoint.every_epochs}): the cohort cannot change any more"
    )


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
    names = _names(run.folder)
    recipe = _met(run.recipe, run.folder, names, start.epoch, tell)
    new = _begun(replace(run, recipe=recipe, start=start))
    for name in names:
        run.folder.delete_file(f"{ROOT}/{name}")
    return new


def unchanged(starts: Sequence[Run], why: KdclError, tell: Callable[[str], None]) -> Run:
    """The run as it goes on with the cohort before the last change, if the other one could not begin.

    Args:
        starts: of the run, each with another cohort; a failure has ended the last.
        why: the failure.
        tell: takes a line.

    Raises:
        KdclError: `why`, where nothing was changed, or the cohort that failed has trained.
    """
    *earlier, run = starts
    record: dict[str, Any] = {}
    with suppress(StorageError, RunFolderError):  # the failure that ended the run counts more
        record = read_record(run.folder) if earlier else {}
    if record.get("owner") != run.id or record.get("generation", {}).get("run") == run.id:
        raise why
    tell(f"the cohort stays as it was, since the other one cannot begin: {'; '.join(str(why).splitlines())}")
    return _begun(replace(earlier[-1], start=run.start))


def requested(recipe: Recipe, folder: Folder, epoch: int) -> Recipe:
    """The recipe with the requests that are not met yet, as if after so many epochs; bad ones left out."""
    return _met(recipe, folder, _names(folder), epoch, lambda text: None)


def _met(
    recipe: Recipe, folder: Folder, names: Sequence[str], epoch: int, tell: Callable[[str], None]
) -> Recipe:
    for name in names:
        try:
            request = _REQUEST.validate_json(folder.read(f"{ROOT}/{name}", MAX_BYTES))
            recipe = apply(recipe, request, epoch)
        except (RecipeError, ValidationError, ValueError, KeyError, OSError) as error:
            reason = str(error) if isinstance(error, RecipeError) else one_line(error)
            tell(f"a request to change the cohort is refused: {reason}")
        else:
            joins = "add" in request
            who = recipe.names[-1] if joins else request["remove"]
            tell(f"{who} {'joins' if joins else 'leaves'} after epoch {epoch}")
    return recipe


def _begun(run: Run) -> Run:
    """The run as another start of it, which owns the folder and whose recipe is there."""
    new = replace(run, id=new_id(run.name))
    write_recipe(run.folder, run.recipe)
    update_record(run.folder, state="starting", cause=None, owner=new.id, launcher=this_process())
    return new


def _names(folder: Folder) -> list[str]:
    return sorted(name for name in folder.names(ROOT) if name.endswith(".json"))
