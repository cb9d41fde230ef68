"""Why an exchange broke: which process died, does not answer, or lost its connections.

The coordinator diagnoses, and the students wait for its diagnosis. The loops below poll the store;
`kdcl_dist.membership.diagnosis` decides on what they observe.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kdcl_dist.errors import CoordinatorLost, ExchangeBroke, KdclError, StudentLost, one_line
from kdcl_dist.membership.diagnosis import (
    NOTICE_S,
    WAIT,
    CoordinatorObservation,
    Decision,
    Outcome,
    PeerState,
    StudentsObservation,
    classify,
    classify_coordinator,
    classify_start,
)
from kdcl_dist.membership.heartbeat import STALE_S, HeartbeatWatch
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.store import ANSWER_S, POLL_S
from kdcl_dist.run.process_log import log_of

__all__ = ["await_all", "diagnose", "timed_out"]

#: How a worker reports that its exchange broke: by its own limit, or because another process closed it.
LATE, CLOSED = "late", "closed"


def await_all(monitor: Monitor, limit_s: float) -> None:
    """Wait until every worker of the generation is ready to form its group.

    Gloo does not read the monitor while it forms a group. This wait finds the failures before that.

    Raises:
        KdclError: the first failure of the generation: a process died, failed, or did not come in time.
    """
    monitor.client.write(_ready_key(monitor, monitor.rank), True)
    watched = monitor.present if monitor.is_coordinator else [monitor.coordinator_rank]
    watches = {rank: HeartbeatWatch() for rank in watched}
    keys = [_ready_key(monitor, rank) for rank in (*monitor.present, monitor.coordinator_rank)]
    began = time.monotonic()
    while not monitor.client.has(*keys):
        monitor.raise_failure()
        elapsed_s = time.monotonic() - began
        missing = {
            rank: _observe_peer(monitor, rank, watch)
            for rank, watch in watches.items()
            if not monitor.client.has(_ready_key(monitor, rank))
        }
        decision = classify_start(elapsed_s, missing, limit_s=limit_s, is_coordinator=monitor.is_coordinator)
        if decision != WAIT:
            monitor.cause = monitor.report(_start_failure(monitor, decision))
            raise monitor.cause
        monitor.client.has(*keys, wait_s=POLL_S)


def _ready_key(monitor: Monitor, rank: int) -> str:
    return monitor.own_key(f"ready/{monitor.names[rank]}")


def _start_failure(monitor: Monitor, decision: Decision) -> KdclError:
    died = decision.outcome is Outcome.DIED
    how = "died" if died else "did not answer within limits.startup_s"
    if monitor.is_coordinator:
        return _students_lost(monitor, decision.ranks, how)
    return monitor.coordinator_lost(how)


def timed_out(cause: BaseException) -> bool:
    """Whether a transfer ended by its limit, not by a closed connection."""
    return "timed out" in str(cause).lower()


def diagnose(
    monitor: Monitor,
    cause: BaseException,
    *,
    limit_s: float,
    limit_name: str = "limits.step_s",
    unfinished: Sequence[int] = (),
) -> KdclError:
    """Why a transfer failed: the first failure of the generation, also the monitor's `cause`.

    The coordinator names the students whose transfers its limit ended. Without such students it waits
    until every student has either reported that its exchange broke or fallen silent, and names the silent
    students. Students wait for that diagnosis.

    Args:
        monitor: of this process.
        cause: the exception of the transfer.
        limit_s: seconds for which a live student may be too busy to notice.
        limit_name: the recipe's field of the limit that the transfer had.
        unfinished: ranks whose transfer was not done when its limit ended.
    """
    own_limit = timed_out(cause)
    how, answer_s = (LATE, _answer_s(monitor)) if own_limit else (CLOSED, ANSWER_S)
    try:
        monitor.client.write(_broke_key(monitor, monitor.rank), how, answer_s)
        if monitor.is_coordinator:
            found = _diagnose_students(monitor, cause, own_limit, limit_s, limit_name, unfinished)
        else:
            found = _await_diagnosis(monitor, own_limit, limit_s, limit_name)
    except CoordinatorLost as error:
        found = error
    except Exception as error:
        found = monitor.coordinator_lost(f"cannot be reached ({one_line(error)})")
    monitor.cause = found
    return found


def _broke_key(monitor: Monitor, rank: int) -> str:
    return monitor.own_key(f"broke/{monitor.names[rank]}")


def _answer_s(monitor: Monitor) -> float:
    """Seconds in which the store must answer after a limit ended.

    A heartbeat that the store has not answered yet has used up some of them.
    """
    since = monitor.unanswered_since
    return max(NOTICE_S, STALE_S - (0 if since is None else time.monotonic() - since))


def _diagnose_students(
    monitor: Monitor,
    cause: BaseException,
    own_limit: bool,
    limit_s: float,
    limit_name: str,
    unfinished: Sequence[int],
) -> KdclError:
    observer = _StudentsObserver(monitor, own_limit)
    while True:
        if (error := monitor.failure()) is not None:
            return error
        seen = observer.observe()
        decision = classify(seen, limit_s=limit_s, unfinished=unfinished)
        if decision != WAIT:
            break
        monitor.client.has(*(_broke_key(monitor, rank) for rank in seen.busy), wait_s=POLL_S)
    if decision.outcome is Outcome.NOBODY_LOST:
        return monitor.report(_nobody_lost(monitor, cause, seen.late, limit_name))
    how = "died" if decision.outcome is Outcome.DIED else f"did not answer within {limit_name}"
    return monitor.report(_students_lost(monitor, decision.ranks, how))


class _StudentsObserver:
    """Polls the students' reports and heartbeats after an exchange broke."""

    def __init__(self, monitor: Monitor, own_limit: bool) -> None:
        self.monitor, self.began = monitor, time.monotonic()
        self.late = [monitor.rank] if own_limit else []
        self.watches = {rank: HeartbeatWatch() for rank in monitor.present}

    def observe(self) -> StudentsObservation:
        """The students' state now."""
        monitor = self.monitor
        for rank in [rank for rank in self.watches if monitor.client.has(_broke_key(monitor, rank))]:
            del self.watches[rank]
            if monitor.client.read(_broke_key(monitor, rank)) == LATE:
                self.late.append(rank)
        silent = {rank: _observe_peer(monitor, rank, watch) for rank, watch in self.watches.items()}
        return StudentsObservation(time.monotonic() - self.began, tuple(self.late), silent)


def _observe_peer(monitor: Monitor, rank: int, watch: HeartbeatWatch) -> PeerState:
    """The state of a process; `watch`: of its heartbeat since the wait began."""
    heartbeat = monitor.heartbeat_of(rank)
    stale, replaced = watch.is_stale(heartbeat), _is_replaced(monitor, rank, heartbeat)
    return PeerState(
        stale=stale,
        stale_before=monitor.watches[rank].is_stale(heartbeat),
        # The launcher is not asked about a process that is dead anyway.
        gone=replaced or (not stale and _is_known_dead(monitor, rank, heartbeat)),
        beats=watch.beats,
    )


def _is_replaced(monitor: Monitor, rank: int, heartbeat: dict[str, Any] | None) -> bool:
    """Whether a heartbeat is of another process than the one that joined this generation, which is dead."""
    found = None if heartbeat is None else (heartbeat["host"], heartbeat["pid"])
    return found is not None and monitor.processes.get(rank, found) != found


def _is_known_dead(monitor: Monitor, rank: int, heartbeat: dict[str, Any] | None) -> bool:
    """Whether the launcher knows that the process of a heartbeat is dead."""
    if heartbeat is None or monitor.is_gone is None:
        return False
    return monitor.is_gone(monitor.names[rank], heartbeat["pid"])


def _await_diagnosis(monitor: Monitor, own_limit: bool, limit_s: float, limit_name: str) -> KdclError:
    began = time.monotonic()
    watch = monitor.watches[monitor.coordinator_rank] if own_limit else HeartbeatWatch()
    while (error := monitor.failure()) is None:
        seen = _observe_coordinator(monitor, watch, began, own_limit)
        outcome = classify_coordinator(seen, limit_s=limit_s)
        if outcome is not Outcome.WAIT:
            died = outcome is Outcome.DIED
            how = "gives no sign of life" if died else f"did not answer within {limit_name}"
            return monitor.report(monitor.coordinator_lost(how))
        monitor.client.has(monitor.failure_key, wait_s=POLL_S)
    return error


def _observe_coordinator(
    monitor: Monitor, watch: HeartbeatWatch, began: float, own_limit: bool
) -> CoordinatorObservation:
    heartbeat = monitor.heartbeat_of(monitor.coordinator_rank)
    shown = heartbeat or {}
    return CoordinatorObservation(
        elapsed_s=time.monotonic() - began,
        own_limit=own_limit,
        stale=watch.is_stale(heartbeat),
        phase=shown.get("phase"),
        stuck=shown.get("stack") is not None,
        broke=own_limit and monitor.client.has(_broke_key(monitor, monitor.coordinator_rank)),
    )


def _students_lost(monitor: Monitor, ranks: Sequence[int], how: str) -> KdclError:
    """The failure of students that died or do not answer; the monitor's `lost` are their processes."""
    heartbeats = {rank: monitor.heartbeat_of(rank) or {} for rank in ranks}
    monitor.lost = [
        (monitor.names[rank], heartbeat["pid"])
        for rank, heartbeat in heartbeats.items()
        if heartbeat and not _is_replaced(monitor, rank, heartbeat)
    ]
    names = [monitor.names[rank] for rank in ranks]
    logs = " and ".join(log_of(name) for name in names)
    step, phase, seen = _whereabouts(monitor, heartbeats[ranks[0]])
    return StudentLost(
        f"{', '.join(names)} {how}; see {logs} in the run folder",
        student=monitor.names[ranks[0]],
        step=step,
        phase=phase,
        host=seen.get("host"),
        detail=seen.get("stack"),
    )


def _whereabouts(monitor: Monitor, seen: dict[str, Any]) -> tuple[int, str | None, dict[str, Any]]:
    """The step and phase in which a student was lost, and its last heartbeat of this generation."""
    own = monitor.heartbeat
    if seen and seen["generation"] != monitor.generation:  # of the generation before
        seen = {"host": seen["host"], "step": own.step, "phase": own.phase}
    # A heartbeat is up to a second old. It shows the student's phase only if it is of the step that the
    # coordinator waits for, or if the student has been in the phase for long.
    step = seen["step"] if seen.get("stack") else max(own.step, seen.get("step", 0))
    return step, seen.get("phase") if seen.get("step") == step else None, seen


def _nobody_lost(monitor: Monitor, cause: BaseException, late: Sequence[int], limit_name: str) -> KdclError:
    """The failure where every process lives: one was too slow and answers again, or a link is bad."""
    names = ", ".join(monitor.names[rank] for rank in late)
    slow = f"{names} waited longer than {limit_name}, although every process lives: raise it"
    broke = f"the exchange broke although every process lives: {one_line(cause)}"
    return ExchangeBroke(slow if late else broke, step=monitor.heartbeat.step, phase=monitor.heartbeat.phase)
