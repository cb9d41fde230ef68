"""The checkpoint of an epoch that a user names: by its number, or the best epoch of a student."""

from __future__ import annotations

from typing import Literal

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import CheckpointError, RunFolderError
from kdcl_dist.run.checkpoint import Manifest, steps, whole
from kdcl_dist.run.storage import Folder
from kdcl_dist.run.validation import best_of

__all__ = ["Epoch", "checkpoint_of_best", "checkpoint_of_epoch", "cohort_of"]

#: An epoch from 1 on, or that in which a student is best.
Epoch = int | Literal["best"]


def checkpoint_of_epoch(folder: Folder, steps_per_epoch: int, epoch: int, option: str) -> Manifest:
    """The checkpoint at the end of an epoch, undamaged.

    Args:
        folder: the run folder.
        steps_per_epoch: of the run.
        epoch: from 1 on.
        option: of the command, for errors.

    Raises:
        RunFolderError: there is no such checkpoint, or it is damaged.
    """
    found = steps(folder)
    if epoch * steps_per_epoch not in found:
        ends = [str(step // steps_per_epoch) for step in found if step % steps_per_epoch == 0]
        kept = f"those of epochs {', '.join(ends)}" if ends else "none at the end of an epoch"
        raise RunFolderError(
            f"{option}: {str(folder)!r} has no checkpoint of epoch {epoch}, it has {kept} "
            "(checkpoint.every_epochs, checkpoint.keep and checkpoint.best decide which)"
        )
    try:
        return whole(folder, epoch * steps_per_epoch)
    except CheckpointError as error:
        raise RunFolderError(
            f"{option}: the checkpoint of epoch {epoch} cannot be used: {error.message}"
        ) from None


def cohort_of(recipe: Recipe, manifest: Manifest, steps_per_epoch: int) -> list[int]:
    """The indices of the students of a checkpoint's ensemble: of the epoch in which its last step was."""
    return recipe.cohort(max(0, manifest.step - 1) // steps_per_epoch)


def checkpoint_of_best(folder: Folder, recipe: Recipe, newest: Manifest, name: str) -> Manifest:
    """The checkpoint at the end of a student's best epoch.

    Args:
        folder, recipe: of the run.
        newest: its latest checkpoint, which knows the best epoch.
        name: of the student.

    Raises:
        RunFolderError: the student has no best epoch, or its checkpoint is damaged or gone.
    """
    try:
        found = best_of(folder, newest, name, recipe.checkpoint.best)
    except CheckpointError as error:
        raise RunFolderError(f"--epoch best: {error.message}") from None
    if found is None:
        why = "checkpoint.best is null" if recipe.checkpoint.best is None else "no test has a figure of it"
        raise RunFolderError(f"--epoch best: {str(folder)!r} has no best epoch of {name!r} ({why})")
    return found[1]
