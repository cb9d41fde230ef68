"""Making the folder of a new run, or finding the one to resume."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdcl_dist.config.differences import differences, forbidden_changes, roundings
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.stored_imports import import_strings
from kdcl_dist.config.strict_yaml import MAX_BYTES
from kdcl_dist.errors import RecipeError, RunFolderError, StorageError, one_line
from kdcl_dist.run.checkpoint import Manifest, has_committed, latest
from kdcl_dist.run.creation import create, new_id
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run, load_run, write_recipe
from kdcl_dist.run.storage import LIMIT_S, Folder
from kdcl_dist.utils.process import this_process

__all__ = ["NAME", "prepare", "resumed_recipe", "runs_folder"]

#: What a run may be called: one folder, on any file system.
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"


def prepare(
    recipe: Recipe,
    storage: str,
    name: str | None,
    *,
    resume: bool,
    warn: Callable[[str], None],
    recipe_file: str | None = None,
) -> Run:
    """Make the folder of a new run, or find the one to resume.

    Args:
        recipe: the run.
        storage: path or URI of the folder that holds runs.
        name: the name of the run folder within it. None: the recipe's name and the time; to resume, the
            latest folder of the recipe's name that has a checkpoint.
        resume: continue from the latest undamaged checkpoint.
        warn: takes a text for each damaged checkpoint that is skipped, and for a doubtful resumption.
        recipe_file: the digest of the recipe's file, for the record of a new run; see `resumed_recipe`.

    Raises:
        RunFolderError: the name belongs to another run, the folder cannot be written, nothing is there to
            resume, or the folder is of another recipe.
    """
    root = runs_folder(storage, recipe.limits.patience_s)
    if not _is_name(name):
        raise RunFolderError(
            f"--name {name!r}: a name has letters, digits, '.', '_' and '-', at most 128, and begins with "
            "a letter or digit"
        )
    if not resume:
        root.check_writable()
        return create(root, name, recipe, recipe_file, warn)
    try:
        name = name or _latest_name(root, recipe.name)
        old, start = _resumable(root / name, recipe, warn)
    except StorageError as error:
        raise RunFolderError(f"nothing to resume: {error.message}") from error
    root.check_writable()
    run = Run(recipe, new_id(name), root / name, start, str(Path.cwd()))
    run.remove_partial()
    _record_resumption(run, old)
    return run


def resumed_recipe(
    wanted: Recipe, recipe_file: str, overrides: Sequence[str], storage: str, name: str | None
) -> Recipe:
    """The recipe with which a run resumes, so that no override of its start must be repeated.

    It is the stored recipe with the overrides of this resumption, if the recipe's file is that of the start.
    It is `wanted` if the file has changed or is unknown, if the overrides only fit the file, as
    `students.a=null` given again, or if the stored recipe would import what `wanted` does not: a run folder
    may come from someone else. `prepare` then finds whether the recipe may resume the run. Of a run of 0.1.0
    the stored shares of GPUs count where `wanted` states none: that version's default was the CPU.

    Args:
        wanted: the recipe's file with the overrides of this resumption.
        recipe_file: the digest of the file.
        overrides: as `load_recipe` takes them.
        storage, name: as `prepare` takes them.

    Raises:
        RunFolderError: the folder or its record is damaged, or there is none to resume.
    """
    if not _is_name(name):  # `prepare` refuses it
        return wanted
    try:
        root = runs_folder(storage, wanted.limits.patience_s)
        folder = root / (name or _latest_name(root, wanted.name))
        digest = read_record(folder).get("recipe_file")
        if digest not in (None, recipe_file):
            return wanted
        text, source = folder.read("recipe.yaml", MAX_BYTES).decode(), f"{folder}/recipe.yaml"
        old = parse_recipe(text, source=source)
        if digest is None:
            return _with_stored_gpus(wanted, old)
        found = parse_recipe(text, overrides, source)
    except (OSError, ValueError, StorageError, RecipeError):
        return wanted
    only_fits_file = differences(old, found) and not differences(old, wanted)
    foreign = import_strings(found) - import_strings(wanted)
    return wanted if only_fits_file or foreign else found


def _with_stored_gpus(wanted: Recipe, old: Recipe) -> Recipe:
    """`wanted` with the `resources.gpu` of `old` for each student of which it states none."""
    stored = {student.name: student.resources.gpu for student in old.students}
    students = []
    for student in wanted.students:
        resources = student.resources
        if "gpu" not in resources.model_fields_set:
            resources = resources.model_copy(update={"gpu": stored.get(student.name, resources.gpu)})
        students.append(student.model_copy(update={"resources": resources}))
    return wanted.model_copy(update={"students": students})


def _is_name(name: str | None) -> bool:
    return name is None or re.fullmatch(NAME, name) is not None


def runs_folder(uri: str, limit_s: float = LIMIT_S) -> Folder:
    """The folder of runs.

    Args:
        uri: as the user gives it.
        limit_s: seconds for which a failing operation is retried.

    Raises:
        RunFolderError: it is empty, or cannot be understood.
    """
    if not uri.strip():
        raise RunFolderError("--storage is empty; give the folder of runs as a path or URI")
    try:
        return Folder(uri if "://" in uri else str(Path(uri).expanduser()), limit_s)
    except RuntimeError as error:  # `~name` of a user that is not there
        raise RunFolderError(f"--storage {uri!r}: {one_line(error)}") from error


def _resumable(folder: Folder, recipe: Recipe, warn: Callable[[str], None]) -> tuple[Recipe, Manifest]:
    """The stored recipe of a run that `recipe` can resume, and the checkpoint to continue from."""
    if not folder.exists("recipe.yaml"):
        raise RunFolderError(
            f"nothing to resume: {str(folder)!r} is not a run folder (see --storage and --name)"
        )
    old, _ = load_run(folder.uri)
    if changed := forbidden_changes(old, recipe):
        raise RunFolderError(
            f"{str(folder)!r} cannot be resumed with another recipe; it differs in {'; '.join(changed)}"
        )
    if (start := latest(folder, warn)) is None:
        raise RunFolderError(f"nothing to resume: {str(folder)!r} has no complete checkpoint")
    for student in recipe.networks.values():
        name = student.name
        if name not in start.parts and student.from_epoch <= max(1, start.epoch):
            warn(
                f"student {name!r} is not in {start.folder}: it was absent from the start on, or the "
                "manifest is damaged; it begins from its `weights` or at random"
            )
    if changed := roundings(old, recipe):
        warn(f"results may differ in the last bits from those of a run without a break: {'; '.join(changed)}")
    return old, start


def _record_resumption(run: Run, old: Recipe) -> None:
    """Record who owns the run from here on, and in its recipe an end that has changed."""
    record = read_record(run.folder)
    changes: dict[str, Any] = {}
    end = {name: getattr(run.recipe, name) for name in ("epochs", "early_stopping")}
    ends_otherwise = any(value != getattr(old, name) for name, value in end.items())
    if ends_otherwise:
        changes = {"results": None, "stopped_early": None}
    if run.recipe.epochs > old.epochs:
        entry = {"step": run.step, "epochs_before": old.epochs, "epochs": run.recipe.epochs}
        changes["prolonged"] = [*record.get("prolonged", ()), entry]
    if ends_otherwise or record.get("state") != "finished":
        owner = {"owner": run.id, "launcher": this_process(), "root": run.root}
        update_record(run.folder, state="starting", cause=None, **owner, **changes)
    if ends_otherwise:  # after the record: a finished run of too few epochs would not go on
        write_recipe(run.folder, old.model_copy(update=end))


def _latest_name(root: Folder, recipe_name: str) -> str:
    """The latest run of a recipe that has a checkpoint. Names end in the start time, and so sort by it."""
    pattern = re.escape(recipe_name) + r"-\d{8}-\d{6}-[0-9a-f]{4}"
    names = [name for name in root.names() if re.fullmatch(pattern, name)]
    with_checkpoint = [name for name in names if has_committed(root / name)]
    if not with_checkpoint:
        raise RunFolderError(
            f"nothing to resume: {str(root)!r} has no run of recipe {recipe_name!r} with a checkpoint"
        )
    return with_checkpoint[-1]
