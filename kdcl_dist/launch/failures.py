"""Which failure is the first cause of a run's end, from what its launcher knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdcl_dist.errors import CoordinatorLost, KdclError, StudentLost, one_line
from kdcl_dist.launch.processes import Process, how_it_ended
from kdcl_dist.membership.monitor import COORDINATOR

__all__ = ["failure_of", "first_cause", "first_worker_failure"]


def failure_of(process: Process, host: str | None = None) -> KdclError:
    """The failure of one process: what it reported, else that it died on `host`."""
    if process.error is not None:
        return process.error
    message = f"the process of {process.name} died ({how_it_ended(process)})"
    if process.output is not None:
        message += f"; see {process.output.path} in the run folder"
    if process.name == COORDINATOR:
        return CoordinatorLost(message, host=host)
    return StudentLost(message, student=process.name, host=host)


def first_cause(processes: Sequence[Process], host: str) -> KdclError | None:
    """The first cause among the failures of a cohort's processes, which all ran on `host`; None without any.

    The death of a process that reported nothing comes before every report: the reports follow from it, and
    tell the step and the phase. Without such a death the first report is the cause.
    """
    for process in processes:
        if process.ended and process.finished is None and process.error is None:
            error = failure_of(process, host)
            report = next((p.error for p in processes if p.error and p.error.student == process.name), None)
            return error.at(step=report.step, phase=report.phase) if report else error
    return next((process.error for process in processes if process.error), None)


def first_worker_failure(failures: Mapping[int, BaseException]) -> KdclError | None:
    """The first cause among the failures that Ray Train saw of its workers, by rank; None without any.

    A failure inside a student comes before the loss of a student or of the coordinator, which may follow
    from it.
    """
    reported = [failure for failure in failures.values() if isinstance(failure, KdclError)]
    if reported:
        return next((e for e in reported if not isinstance(e, (StudentLost, CoordinatorLost))), reported[0])
    if failures:
        rank, failure = next(iter(failures.items()))
        return StudentLost(f"the worker of rank {rank} died: {one_line(failure)}", detail=str(failure))
    return None
