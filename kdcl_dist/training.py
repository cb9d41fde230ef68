"""`train(recipe)`: the whole of a run as one call."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Literal

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.stored_imports import import_strings
from kdcl_dist.data.data_warnings import data_warnings
from kdcl_dist.data.stored_fit import check_stored
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import (
    CoordinatorLost,
    PreflightError,
    RecipeError,
    RunFolderError,
    StorageError,
    StudentLost,
    UserError,
    wrap,
)
from kdcl_dist.launch.devices import ignored_locally
from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.launch.preflight.bank_memory import measure_bank_memory, measure_record_memory
from kdcl_dist.launch.signals import stop_on_signals
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.creation import abandon
from kdcl_dist.run.events import Ended, Event, Note, Warned
from kdcl_dist.run.launcher_log import LauncherLog
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.process_log import last_lines, log_of
from kdcl_dist.run.record import read_record, record_failure, record_interruption, scores_of, update_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.uris import displayed
from kdcl_dist.tracking.tracking import catch_up, check_trackers
from kdcl_dist.utils.import_strings import names_object
from kdcl_dist.utils.objects import known, knows, not_passed

__all__ = ["Launcher", "Result", "launch", "open_data", "train"]

Launcher = Literal["ray", "local"]


@dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        path: the run folder's path or URI.
        finished: False when the run was stopped before its end, after a checkpoint.
        metrics: test results at the end, by student and for "ensemble": loss (nats), top1 and top5 (shares
            from 0 to 1). With `checkpoint.best` also those of the best epochs, by "student/best" and
            "ensemble/best", and the `epoch`. None of a run that was stopped.
    """

    path: str
    finished: bool
    metrics: dict[str, dict[str, float]]


def train(
    recipe: Recipe,
    *,
    launcher: Launcher = "ray",
    storage: str = "runs",
    name: str | None = None,
    resume: bool = False,
    recipe_file: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: threading.Event | None = None,
    save: threading.Event | None = None,
) -> Result:
    """Train the cohort of a recipe.

    The objects that its strings name are those of `kdcl_dist.utils.objects.carrying` around the call.

    Args:
        recipe: what to train.
        launcher: "ray" joins the cluster of RAY_ADDRESS or of `ray start` here, or starts its own; "local"
            works without Ray.
        storage: path or URI of the folder that holds runs.
        name: the run's folder within it; by default the recipe's name and the time.
        resume: continue the run from its latest checkpoint.
        recipe_file: the digest of the recipe's file, kept in the run's record for `kdcl train --resume`.
        on_event: called with each event of the run.
        stop: set to ask for a checkpoint and an end after the step; by default Ctrl-C and SIGTERM ask.
        save: set to ask for a checkpoint after the step; cleared when it is taken.

    Raises:
        UserError: the recipe, its data, models or the run folder cannot be used as they are.
        KdclError: the first cause of the run's failure; what was saved stays in the run folder.
    """
    _check_call(recipe, launcher)
    if launcher == "local":
        start_server()  # imports while this process prepares the run
    told = LauncherLog(on_event)
    training_data = open_data(recipe, told.handle)
    run = prepare(recipe, storage, name, resume=resume, warn=told.warn, recipe_file=recipe_file)
    told.handle(Note(_where(run)))
    if read_record(run.folder).get("state") == "finished":
        finished = _tell_finished(run, on_event)
    else:
        _record_samples(run, training_data)
        finished = launch(replace(run, objects=known()), launcher, told, stop, save)
    return Result(run.folder.uri, finished, scores_of(read_record(run.folder)))


def _where(run: Run) -> str:
    """A line on the run's folder, and the step from which it goes on."""
    begins = f", from step {run.step}" if run.start else ""
    return f"run folder {displayed(run.folder.uri)}{begins}"


def _record_samples(run: Run, training_data: TrainingData) -> None:
    samples = sum(len(ids) for ids in training_data.split)
    update_record(run.folder, classes=len(training_data.train.classes), samples=samples)


def _tell_finished(run: Run, on_event: Callable[[Event], None]) -> bool:
    """Say that a run was finished before, and pass on what its trackers lack."""
    early = read_record(run.folder).get("stopped_early")
    on_event(Note("; ".join(filter(None, ["the run is finished already", early]))))
    catch_up(run, on_event)
    on_event(Ended(finished=True))
    return True


def _check_call(recipe: Recipe, launcher: Launcher) -> None:
    """Check what no field says: Ray, trackers and objects are there, and this is the script's own start."""
    if launcher == "ray":
        import_module("kdcl_dist.launch.ray")  # raises if Ray is missing
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "train() is called while a process that your script has started imports the script again: put "
            'the calls of the script below `if __name__ == "__main__":`'
        )
    for text in sorted(import_strings(recipe)):
        if names_object(text) and not knows(text):
            raise RecipeError(not_passed(text))
    check_trackers(recipe)


def open_data(recipe: Recipe, on_event: Callable[[Event], None]) -> TrainingData:
    """The training data, after the warnings on it and the recipe, and checks of all logits that are kept.

    Raises:
        UserError: the data or a file of logits cannot be used, or the bank or the record has no room.
    """
    training_data = TrainingData.open(recipe, lambda text: on_event(Note(text)))
    for warning in (*recipe.warnings(), *data_warnings(training_data)):
        on_event(Warned(warning))
    for line in check_stored(training_data):
        on_event(Note(f"stored logits: {line}"))
    sizes = len(training_data.train), len(training_data.train.classes)
    for what, memory in (
        ("bank of logits", measure_bank_memory(recipe, *sizes)),
        ("record of logits", measure_record_memory(recipe, *sizes)),
    ):
        if memory is not None:
            on_event(Note(f"{what}: {memory}"))
            if memory.lack:
                raise PreflightError(f"{what}: {memory.lack}")
    return training_data


def launch(
    run: Run,
    launcher: Launcher,
    told: LauncherLog,
    stop: threading.Event | None,
    save: threading.Event | None = None,
) -> bool:
    """Train a run, and keep what is told; record the failure that ends it.

    Args:
        run: the run, with its folder.
        launcher, stop, save: as `train` takes them.
        told: takes the events.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        KdclError: the first cause of the failure.
    """
    try:
        with told.kept(run.folder):
            finished = _train(run, launcher, told.handle, stop, save)
            told.handle(Ended(finished))
            return finished
    except BaseException as error:
        _add_last_lines(run, error)
        _record_end(run, error)
        raise


def _train(
    run: Run,
    launcher: Launcher,
    on_event: Callable[[Event], None],
    stop: threading.Event | None,
    save: threading.Event | None,
) -> bool:
    """Train with the launcher; arguments and result as of `launch`."""
    request = nullcontext(stop) if stop else stop_on_signals(lambda text: on_event(Note(text)))
    with request as stop_requested:
        # Each launcher is imported only where it is used: Ray takes seconds to import, and may be absent.
        if launcher == "local":
            from kdcl_dist.launch.local import launch as start
        else:
            from kdcl_dist.launch.ray.driver import launch as start

        for line in ignored_locally(run.recipe) if launcher == "local" else ():
            on_event(Warned(line))
        return start(run, on_event, stop_requested, save)


def _add_last_lines(run: Run, error: BaseException) -> None:
    """Add to the error of a process that is lost the last lines of its log, which may tell why."""
    if not isinstance(error, StudentLost | CoordinatorLost):
        return
    name = error.student or COORDINATOR
    if lines := last_lines(run.folder, name):
        head = f"the last lines of {run.folder}/{log_of(name)}:"
        error.detail = "\n".join(filter(None, [error.detail, head, *lines]))


def _record_end(run: Run, error: BaseException) -> None:
    """Record why a run ended early; a run that a user's mistake kept from training leaves nothing behind."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        record_interruption(run)
        return
    if isinstance(error, UserError):
        record_failure(run, error)
        with suppress(RunFolderError, StorageError):  # the error that ended the run counts more
            abandon(run)
    else:
        record_failure(run, wrap(error, student=None, step=None, phase="launch"))
