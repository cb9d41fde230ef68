"""The runs of an experiment: finished runs are skipped, stopped runs resumed, failed runs reported."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

from kdcl_dist.compare.experiment import Job
from kdcl_dist.config.differences import differences
from kdcl_dist.errors import KdclError, RunFolderError, StorageError
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.events import Event, Values, Warned
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record, scores_of, update_record
from kdcl_dist.run.run import load_run
from kdcl_dist.run.storage import Folder
from kdcl_dist.tracking.tracking import catch_up, check_trackers
from kdcl_dist.training import Launcher, train

__all__ = ["OnEvent", "Outcome", "finished_before", "run_jobs", "tell_trackers"]

#: Handles an event of a job.
OnEvent = Callable[[Job, Event], None]


@dataclass(frozen=True)
class Outcome:
    """The end of a job: its test results by student, or the error that ended it, or kept its trackers behind.

    Attributes:
        job: the run.
        results: None if it failed.
        error: None if it finished.
        seconds: that it took, of all its starts by `kdcl compare`; None where they are not known.
    """

    job: Job
    results: Values | None = None
    error: KdclError | None = None
    seconds: float | None = None


def finished_before(jobs: Sequence[Job], storage: str) -> list[Outcome]:
    """The outcomes of the jobs whose folders hold finished runs of the same recipe, in the order of the jobs.

    Args:
        jobs: the runs of a table.
        storage: path or URI of the folder of the runs.
    """
    found = []
    for job in jobs:
        folder = Folder(storage) / job.name
        with contextlib.suppress(KdclError):  # of a damaged folder the run itself will tell
            record = read_record(folder) if folder.exists("recipe.yaml") else {}
            if record.get("state") == "finished" and not differences(load_run(folder.uri)[0], job.recipe):
                found.append(Outcome(job, scores_of(record), seconds=record.get("seconds")))
    return found


def tell_trackers(jobs: Sequence[Job], storage: str, on_event: OnEvent) -> list[Outcome]:
    """Give the trackers of finished runs the epochs that they lack; the outcomes of those where that failed.

    Args:
        jobs: the runs.
        storage: path or URI of the folder of the runs.
        on_event: called with each event of each job.
    """
    failed = []
    for job in jobs:
        try:
            check_trackers(job.recipe)
            run = prepare(job.recipe, storage, job.name, resume=True, warn=partial(_warn, job, on_event))
            catch_up(run, partial(on_event, job))
        except KdclError as error:
            results = scores_of(read_record(Folder(storage) / job.name))
            failed.append(Outcome(job, results, error))
    return failed


def _warn(job: Job, on_event: OnEvent, text: str) -> None:
    on_event(job, Warned(text))


def run_jobs(
    jobs: Sequence[Job],
    storage: str,
    *,
    launcher: Launcher,
    max_concurrent_runs: int,
    stop: threading.Event,
    on_event: OnEvent,
    on_outcome: Callable[[Outcome], None],
) -> list[Outcome]:
    """Train all jobs; the others continue after one has failed.

    Args:
        jobs: the runs to train, in order.
        storage: path or URI of the folder of the runs.
        launcher: as for `kdcl_dist.train`.
        max_concurrent_runs: number of runs that train at the same time.
        stop: once set, current runs end after a checkpoint, and no further run starts.
        on_event: called with each event of each job, from as many threads as there are concurrent runs.
        on_outcome: called in this thread with each outcome.

    Returns:
        The outcome of each job that finished or failed, in the order of the jobs.
    """

    def run(job: Job) -> Outcome | None:
        """The job's outcome; None after the stop."""
        return None if stop.is_set() else _run(job, storage, launcher, stop, on_event)

    found: dict[str, Outcome] = {}
    with ThreadPoolExecutor(max_concurrent_runs, thread_name_prefix="kdcl-compare") as pool:
        futures: list[Future[Outcome | None]] = [pool.submit(run, job) for job in jobs]
        try:
            for future in as_completed(futures):  # without a limit: each run has those of its recipe
                if (outcome := future.result()) is not None:
                    found[outcome.job.name] = outcome
                    on_outcome(outcome)
        except BaseException:  # a second Ctrl-C: start no further run
            stop.set()
            raise
    return [found[job.name] for job in jobs if job.name in found]


def _run(
    job: Job, storage: str, launcher: Launcher, stop: threading.Event, on_event: OnEvent
) -> Outcome | None:
    """Train one job; None when it was stopped before its end."""
    folder = Folder(storage) / job.name
    try:
        resumes = _can_resume(job, folder)
        before_s, began = read_record(folder).get("seconds", 0.0) if resumes else 0.0, time.monotonic()
        result = train(
            job.recipe,
            launcher=launcher,
            storage=storage,
            name=job.name,
            resume=resumes,
            on_event=lambda event: on_event(job, event),
            stop=stop,
        )
    except KdclError as error:
        return Outcome(job, error=error)
    seconds = before_s + time.monotonic() - began
    with contextlib.suppress(StorageError):  # the run's results count more than its time
        update_record(folder, seconds=round(seconds, 1))
    return Outcome(job, result.metrics, seconds=seconds) if result.finished else None


def _can_resume(job: Job, folder: Folder) -> bool:
    """Whether the job's folder holds a finished run or a checkpoint; in any other the job begins anew.

    Raises:
        RunFolderError: the folder holds a run of another recipe.
    """
    if not folder.exists("recipe.yaml"):
        return False
    if changed := differences(load_run(folder.uri)[0], job.recipe):
        raise RunFolderError(
            f"{str(folder)!r} holds a run of another recipe, which differs in {'; '.join(changed)}: "
            "delete it, or give the table another name"
        )
    return read_record(folder).get("state") == "finished" or latest(folder, lambda text: None) is not None
