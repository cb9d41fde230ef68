"""Taking a name for a new run, and giving it back where the run ended before it trained anything."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import RunFolderError, StorageError
from kdcl_dist.run.checkpoint import has_committed
from kdcl_dist.run.claim import claimed
from kdcl_dist.run.record import new_record, read_record
from kdcl_dist.run.run import Run, versions, write_recipe
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.process import is_dead, this_process

__all__ = ["abandon", "create", "new_id"]

#: All that a run writes into its folder.
CONTENT = (
    *("recipe.yaml", "run.json", "metrics", "checkpoints", "cohort", "logits", "logs", "ray"),
    *("tensorboard", "tracking", "metrics.csv", "wandb"),
)
#: States of a run that trains no more, in words.
ENDED = {"failed": "failed", "interrupted": "was interrupted"}


class _NameTaken(RunFolderError):
    """The folder of that name belongs to another run."""


def create(
    root: Folder, name: str | None, recipe: Recipe, recipe_file: str | None, warn: Callable[[str], None]
) -> Run:
    """Make the folder of a new run; of several starts that want one name, one gets it.

    A name is free if there is no run of it, or one that ended before its first checkpoint.

    Args:
        root: the folder of runs.
        name: of the run; None: the recipe's name, the time and four digits that are free.
        recipe, recipe_file, warn: as `kdcl_dist.run.prepare.prepare` takes them.

    Raises:
        RunFolderError: the name belongs to another run, or the folder cannot be written.
    """
    while True:
        chosen = name or f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
        run = Run(recipe, new_id(chosen), root / chosen, None, str(Path.cwd()))
        try:
            with claimed(root, chosen, lambda: _check_free(run.folder)):  # noqa: B023 - used in this pass only
                _begin(run, recipe_file, warn)
            return run
        except _NameTaken:
            if name is not None:
                raise
        except StorageError as error:
            raise RunFolderError(f"run {chosen!r} cannot be made: {error.message}") from error


def new_id(name: str) -> str:
    """The id of one start of a run."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


def abandon(run: Run) -> None:
    """Remove what a start wrote that a mistake ended before it trained, and nothing else in the folder.

    The folder stays as it is where another start owns it, or it has a checkpoint, whole or not.
    """
    with claimed(run.folder.parent, run.name, lambda: None):
        owner = read_record(run.folder).get("owner")
        if run.start is None and owner == run.id and not run.folder.names("checkpoints"):
            _clear(run.folder)
            if not run.folder.names():
                run.folder.delete("")


def _begin(run: Run, recipe_file: str | None, warn: Callable[[str], None]) -> None:
    """Write the record and the recipe of a new run; its start holds the claim on the name."""
    if ended := _check_free(run.folder):
        warn(f"run {run.name!r} {ended} before its first checkpoint: it begins anew")
        _clear(run.folder)
    digest = {} if recipe_file is None else {"recipe_file": recipe_file}
    new_record(
        run.folder,
        state="starting",
        cause=None,
        owner=run.id,
        launcher=this_process(),
        root=run.root,
        versions=versions(),
        **digest,
    )
    write_recipe(run.folder, run.recipe)


def _check_free(folder: Folder) -> str | None:
    """Check that a name is free; returns how the run that has its folder ended, if there is one."""
    record = read_record(folder)
    if not record and not folder.exists("recipe.yaml") and not has_committed(folder):
        return None
    exists = f"run folder {str(folder)!r} exists: give another --name, or --resume to continue it"
    if has_committed(folder):
        raise _NameTaken(exists)
    if state := ENDED.get(record.get("state", "")):
        return state
    if is_dead(record.get("launcher", "")):
        return "died"
    raise _NameTaken(f"{exists} once it has a checkpoint; if its run has ended, delete the folder")


def _clear(folder: Folder) -> None:
    for name in CONTENT:
        if "." in name:
            folder.delete_file(name)
        else:
            folder.delete(name)
