"""`kdcl train --dry-run`: some steps of the whole cohort, and what they show of the run; nothing is left."""

from __future__ import annotations

import os
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import RunSchedule
from kdcl_dist.config.tracking import FILES, name_of
from kdcl_dist.errors import CheckpointError, StorageError
from kdcl_dist.launch.signals import stop_on_signals
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.creation import create
from kdcl_dist.run.data_wait import read_data_wait
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.launcher_log import LauncherLog
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.prepare import runs_folder
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder
from kdcl_dist.run.usage import Usage, read_usage
from kdcl_dist.tracking.tracking import check_trackers
from kdcl_dist.training import Launcher, launch, open_data

__all__ = ["Trial", "try_run"]


@dataclass(frozen=True)
class Trial:
    """What a dry run tells.

    Attributes:
        processes: the peaks of each process's memory.
        steps_s: seconds of each step that was taken; the first has the warm-up.
        steps_per_epoch, epochs: of the run.
        checkpoint_bytes: size of a checkpoint.
        checkpoints: how many the run keeps at most, while it writes one.
        metrics_bytes: size of the run's metrics, TensorBoard's included, in proportion to its steps.
        data_wait: the students whose data hold up the steps, and the remedy; None: no student's do.
    """

    processes: dict[str, Usage]
    steps_s: list[float]
    steps_per_epoch: int
    epochs: int
    checkpoint_bytes: int
    checkpoints: int
    metrics_bytes: int
    data_wait: str | None

    @property
    def step_s(self) -> float:
        """Seconds of a step: the median of all but the first, if there are others."""
        return median(self.steps_s[1:] or self.steps_s)

    @property
    def epoch_s(self) -> float:
        """Seconds of the training steps of an epoch."""
        return self.steps_per_epoch * self.step_s

    @property
    def run_bytes(self) -> int:
        """The size of the run's folder at most, without its logs."""
        return self.checkpoints * self.checkpoint_bytes + self.metrics_bytes

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        derived = {"step_s": self.step_s, "epoch_s": self.epoch_s, "run_bytes": self.run_bytes}
        return asdict(self) | derived


def try_run(
    recipe: Recipe,
    steps: int,
    *,
    launcher: Launcher,
    storage: str,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: threading.Event | None = None,
) -> Trial:
    """Take the first steps of a run, one batch of each test, and a checkpoint.

    Args:
        recipe: the run.
        steps: how many; at most those of an epoch.
        launcher, storage, on_event, stop: as `kdcl_dist.train` takes them. A folder of the storage is used
            and deleted.

    Raises:
        KeyboardInterrupt: it was stopped.
        KdclError: what would end the run.
    """
    check_trackers(recipe)
    told = LauncherLog(on_event)
    schedule = open_data(recipe, told.handle).schedule
    request = nullcontext(stop) if stop else stop_on_signals(lambda text: told.handle(Note(text)))
    # Around the folder's whole life: a SIGTERM that ended this process would leave the folder.
    with request as requested, _temporary_run(_without_traces(recipe), storage, told.handle) as made:
        run = replace(made, dry_steps=steps)
        told.handle(Note(f"dry run of {steps} steps in {run.folder}, which is deleted at the end"))
        if not launch(run, launcher, told, requested):
            raise KeyboardInterrupt
        return _measure(run, schedule)


def _without_traces(recipe: Recipe) -> Recipe:
    """The recipe without trackers outside the run folder, without an end that one test decides, and with all
    students from the first epoch to the last.
    """
    trackers = [tracker for tracker in recipe.tracking if name_of(tracker) in FILES]
    always = {"from_epoch": 1, "until_epoch": None}
    students = [student.model_copy(update=always) for student in recipe.students]
    return recipe.model_copy(update={"early_stopping": None, "tracking": trackers, "students": students})


@contextmanager
def _temporary_run(recipe: Recipe, storage: str, on_event: Callable[[Event], None]) -> Iterator[Run]:
    """A run that takes no name, and whose folder is deleted with all folders that were made for it."""
    root = runs_folder(storage, recipe.limits.patience_s)
    root_path = root.local
    made = (
        []
        if root_path is None
        else [path for path in (root_path, *root_path.parents) if not os.path.lexists(path)]
    )
    name = f".dry-run-{uuid.uuid4().hex[:12]}"
    try:
        root.check_writable()
        yield create(root, name, recipe, None, lambda text: on_event(Warned(text)))
    finally:
        _delete(root / name, made, on_event)


def _delete(folder: Folder, made: list[Path], on_event: Callable[[Event], None]) -> None:
    try:
        folder.delete()
    except StorageError as error:
        on_event(Warned(f"{error.message}; delete {folder} by hand"))
    for path in made:
        with suppress(OSError):  # it was not made, or is in use by now
            path.rmdir()


def _measure(run: Run, schedule: RunSchedule) -> Trial:
    recipe, folder = run.recipe, run.folder
    names = [*recipe.members, COORDINATOR]
    steps_s, manifest = _steps_s(folder), latest(folder, lambda text: None)
    if manifest is None:
        raise CheckpointError(f"the checkpoint of the dry run was deleted from {folder}")
    written = folder.total_bytes("metrics") + folder.total_bytes("tensorboard")
    best = len(recipe.students) if recipe.checkpoint.best else 0
    return Trial(
        processes=read_usage(folder, names),
        steps_s=steps_s,
        steps_per_epoch=schedule.steps_per_epoch,
        epochs=schedule.epochs,
        checkpoint_bytes=sum(part.bytes for part in manifest.parts.values()),
        checkpoints=recipe.checkpoint.keep + 1 + best,
        metrics_bytes=round(written * schedule.epochs * schedule.steps_per_epoch / len(steps_s)),
        data_wait=read_data_wait(folder.uri),
    )


def _steps_s(folder: Folder) -> list[float]:
    """Seconds of each step, of the student that took longest."""
    found: dict[int, float] = defaultdict(float)
    for row in read_metrics(folder).to_pylist():
        if (row["split"], row["name"]) == ("train", "step_s"):
            found[row["step"]] = max(found[row["step"]], row["value"])
    return [found[step] for step in sorted(found)]
