"""Running a table: each run once, finished ones skipped, stopped ones resumed, failed ones reported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from kdcl_dist.compare.experiment import Job
from kdcl_dist.config.differences import differences
from kdcl_dist.errors import KdclError, RunFolderError
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.events import Event, Values
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import load_run
from kdcl_dist.run.storage import Folder
from kdcl_dist.training import Launcher, train

__all__ = ["Outcome", "Watch", "run_jobs"]

#: Hears the events of a job.
Watch = Callable[[Job, Event], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its test results by student, or why there are none."""

    job: Job
    results: Values | None = None
    error: KdclError | None = None


def run_jobs(
    jobs: Sequence[Job],
    storage: str,
    *,
    launcher: Launcher,
    at_once: int,
    stop: threading.Event,
    watch: Watch,
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run all jobs; a failed one does not keep the others from running.

    Args:
        jobs: what to run, in order.
        storage: path or URI of the folder of the runs.
        launcher: as for `kdcl_dist.train`.
        at_once: how many to run at the same time.
        stop: set to end after a checkpoint of what is running; the rest is not begun.
        watch: hears the events of each job, from several threads when at_once > 1.
        done: hears each outcome, in this thread.

    Returns:
        An outcome of each job that ended or failed, in the order of the jobs.
    """

    def run(job: Job) -> Outcome | None:
        return None if stop.is_set() else _run(job, storage, launcher, stop, watch)

    found: dict[str, Outcome] = {}
    with ThreadPoolExecutor(at_once, thread_name_prefix="kdcl-compare") as pool:
        futures: list[Future[Outcome | None]] = [pool.submit(run, job) for job in jobs]
        try:
            for future in as_completed(futures):
                if (outcome := future.result()) is not None:
                    found[outcome.job.name] = outcome
                    done(outcome)
        except BaseException:  # a second Ctrl-C: begin nothing more
            stop.set()
            raise
    return [found[job.name] for job in jobs if job.name in found]


def _run(job: Job, storage: str, launcher: Launcher, stop: threading.Event, watch: Watch) -> Outcome | None:
    """One job; None when it was stopped before its end."""
    try:
        result = train(
            job.recipe,
            launcher=launcher,
            storage=storage,
            name=job.name,
            resume=_resumes(job, Folder(storage) / job.name),
            on_event=lambda event: watch(job, event),
            stop=stop,
        )
    except KdclError as error:
        return Outcome(job, error=error)
    return Outcome(job, results=result.metrics) if result.finished else None


def _resumes(job: Job, folder: Folder) -> bool:
    """Whether the job's folder has something to go on from; one without a checkpoint is cleared.

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
    if read_record(folder).get("state") == "finished" or latest(folder, lambda text: None) is not None:
        return True
    folder.delete("")
    return False
