"""`train(recipe)`: the whole of a run as one call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import PreflightError, UserError, wrap
from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.launch.preflight.bank_memory import look_for_room
from kdcl_dist.launch.signals import stop_on_signals
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record, record_failure, update_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.uris import without_secret

__all__ = ["Launcher", "Result", "train"]

Launcher = Literal["ray", "local"]


@dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        path: the run folder's path or URI.
        finished: False when it was stopped before its end, after a checkpoint.
        metrics: test results after the last whole epoch, by student and for "ensemble": loss (nats),
            top1 and top5 (shares from 0 to 1).
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
    on_event: Callable[[Event], None] = lambda event: None,
    stop: threading.Event | None = None,
) -> Result:
    """Train the cohort of a recipe.

    Args:
        recipe: what to train.
        launcher: "ray" on the Ray of RAY_ADDRESS or of `ray start` here, else on its own; "local" without it.
        storage: path or URI of the folder that holds runs.
        name: the run's folder within it; by default the recipe's name and the time.
        resume: continue the run from its latest checkpoint.
        on_event: hears what happens.
        stop: set to ask for a checkpoint and an end after the step; by default Ctrl-C and SIGTERM ask.

    Raises:
        UserError: the recipe, its data, models or the run folder cannot be used as they are.
        KdclError: the run failed; the first cause, with what was saved left in the run folder.
    """
    if launcher == "local":
        start_server()  # imports beside this process
    training_data = TrainingData.open(recipe)
    for warning in (*recipe.warnings(), *training_data.warnings()):
        on_event(Warned(warning))
    if room := look_for_room(recipe, len(training_data.train), len(training_data.train.classes)):
        on_event(Note(f"bank of logits: {room}"))
        if room.lack:
            raise PreflightError(f"bank of logits: {room.lack}")
    run = prepare(recipe, storage, name, resume=resume, warn=lambda text: on_event(Warned(text)))
    on_event(
        Note(
            f"run folder {without_secret(run.folder.uri)}" + (f", from step {run.step}" if run.start else "")
        )
    )
    if read_record(run.folder).get("state") == "finished":
        on_event(Note("the run is finished already"))
        return Result(run.folder.uri, True, read_record(run.folder)["results"])
    samples = sum(len(ids) for ids in training_data.split)
    update_record(run.folder, classes=len(training_data.train.classes), samples=samples)
    try:
        with nullcontext(stop) if stop else stop_on_signals(lambda text: on_event(Note(text))) as asked:
            finished = _launch(run, launcher, on_event, asked)
    except BaseException as error:
        _note_end(run, error)
        raise
    return Result(run.folder.uri, finished, read_record(run.folder).get("results", {}))


def _note_end(run: Run, error: BaseException) -> None:
    """Note why a run did not come to its end; one that a mistake kept from starting leaves its name free."""
    if isinstance(error, UserError) and run.start is None and not run.folder.names("checkpoints"):
        run.folder.delete("")
    elif isinstance(error, (KeyboardInterrupt, SystemExit)):
        update_record(run.folder, state="interrupted")
    else:
        record_failure(run, wrap(error, student=None, step=None, phase="launch"))


def _launch(run: Run, launcher: Launcher, on_event: Callable[[Event], None], asked: threading.Event) -> bool:
    # Each launcher is imported only where it is used: Ray takes seconds to import, and may be absent.
    if launcher == "local":
        from kdcl_dist.launch import local

        for student in run.recipe.students:
            if student.accelerator is not None:
                path = f"students.{student.name}.accelerator"
                on_event(Warned(f"{path}: {student.accelerator!r} is not looked for by launcher 'local'"))
        return local.launch(run, on_event, asked)
    from kdcl_dist.launch.ray import driver

    return driver.launch(run, on_event, asked)
