"""Why an exchange broke: who died, hangs or was cut off. The coordinator judges; students wait for that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kdcl_dist.errors import CoordinatorLost, ExchangeBroke, KdclError, StudentLost, one_line
from kdcl_dist.membership.heartbeat import STALE_S, Watch
from kdcl_dist.membership.monitor import ANSWER_S, POLL_S, Monitor

__all__ = ["GRACE_S", "await_all", "diagnose", "timed_out"]

#: How long survivors may take to say that they were cut off too, and the time in which most do.
GRACE_S, NOTICE_S = 3.0, 0.5
#: How a worker's exchange ended: by its limit, or because another closed the connection.
LATE, CLOSED = "late", "closed"


def await_all(monitor: Monitor, limit_s: float) -> None:
    """Wait until all who were called into a generation are about to form its group.

    While gloo forms a group nobody looks at the monitor; so who dies or fails before is found here.

    Raises:
        KdclError: the first failure of the generation: who died or failed, or did not come in time.
    """
    monitor.call(monitor.store.set, _here(monitor, monitor.rank), "1")
    watches = {rank: Watch() for rank in (monitor.present if monitor.is_coordinator else [monitor.last])}
    began, keys = time.monotonic(), [_here(monitor, rank) for rank in (*monitor.present, monitor.last)]
    while not monitor.has(*keys):
        monitor.raise_failure()
        late = time.monotonic() - began > limit_s + (0 if monitor.is_coordinator else GRACE_S + STALE_S)
        missing = {rank: seen for rank, seen in watches.items() if not monitor.has(_here(monitor, rank))}
        dead = [rank for rank, seen in missing.items() if _is_dead(monitor, rank, seen, False)]
        if dead or (late and (missing or not monitor.is_coordinator)):  # students leave it to it to name one
            how = "died" if dead else "did not answer within limits.startup_s"
            is_judge = monitor.is_coordinator
            found = _lost(monitor, dead or list(missing), how) if is_judge else monitor.coordinator_lost(how)
            monitor.cause = monitor.report(found)
            raise monitor.cause
        time.sleep(POLL_S)


def _here(monitor: Monitor, rank: int) -> str:
    return monitor.own(f"here/{rank}")


def timed_out(cause: BaseException) -> bool:
    """Whether a transfer ended by its limit rather than by a closed connection."""
    return "timed out" in str(cause).lower()


def diagnose(
    monitor: Monitor,
    cause: BaseException,
    *,
    limit_s: float,
    limit_name: str = "limits.step_s",
    unheard: Sequence[int] = (),
) -> KdclError:
    """Why a transfer failed: the first failure of the generation, also the monitor's `cause`.

    The coordinator names the students that it waited for in vain. Where it does not know them it waits
    until every student has either said that it was cut off too or fallen silent, and names the silent
    ones. Students wait for that diagnosis.

    Args:
        monitor: of this process.
        cause: what the transfer raised.
        limit_s: seconds that a live student may be busy before it notices.
        limit_name: the recipe's field of the limit that the transfer had.
        unheard: ranks that are known not to have done their part of it when its limit ended.
    """
    late = timed_out(cause)
    how, answer_s = (LATE, _answer_s(monitor)) if late else (CLOSED, ANSWER_S)
    try:
        monitor.call(monitor.store.set, monitor.own(f"cut/{monitor.rank}"), how, answer_s=answer_s)
        if monitor.is_coordinator:
            found = _classify(monitor, cause, late, limit_s, limit_name, unheard)
        else:
            found = _await_diagnosis(monitor, late, limit_s, limit_name)
    except CoordinatorLost as error:
        found = error
    except Exception as error:
        found = monitor.coordinator_lost(f"cannot be reached ({one_line(error)})")
    monitor.cause = found
    return found


def _answer_s(monitor: Monitor) -> float:
    """Seconds in which the store must answer when a limit has ended: some have passed since a heartbeat."""
    asked = monitor.asked
    return max(NOTICE_S, STALE_S - (0 if asked is None else time.monotonic() - asked))


def _classify(
    monitor: Monitor,
    cause: BaseException,
    own_limit: bool,
    limit_s: float,
    limit_name: str,
    unheard: Sequence[int],
) -> KdclError:
    began, late = time.monotonic(), [monitor.rank] if own_limit else []
    silent, dead = {rank: Watch() for rank in monitor.present}, list[int]()
    while time.monotonic() < began + (GRACE_S if late else limit_s):
        if (error := monitor.failure()) is not None:
            return error
        late += _hear(monitor, silent)
        dead = [rank for rank, seen in silent.items() if _is_dead(monitor, rank, seen, bool(late))]
        if known := [rank for rank in unheard if rank in silent]:
            silent = {rank: silent[rank] for rank in known}
            break
        busy = [seen for rank, seen in silent.items() if rank not in dead]
        # Who lives has noticed by its next heartbeat, unless it is busy; and the limit ended on who is busy.
        noticed = late and time.monotonic() > began + NOTICE_S and all(seen.beats > 1 for seen in busy)
        if noticed or not busy:
            break
        time.sleep(POLL_S)
    lost = [rank for rank in dead if rank in silent] or list(silent)  # beside them others are just busy
    if not lost:
        return monitor.report(_nobody_lost(monitor, cause, late, limit_name))
    died = not late and any(rank in dead for rank in lost)
    return monitor.report(_lost(monitor, lost, "died" if died else f"did not answer within {limit_name}"))


def _hear(monitor: Monitor, silent: dict[int, Watch]) -> list[int]:
    """Take out those who said that they were cut off; returns those of them whose own limit ended.

    One whose limit ended closed its connections, and so broke those of the others.
    """
    heard = [rank for rank in silent if monitor.has(monitor.own(f"cut/{rank}"))]
    for rank in heard:
        del silent[rank]
    return [r for r in heard if monitor.call(monitor.store.get, monitor.own(f"cut/{r}")).decode() == LATE]


def _is_dead(monitor: Monitor, rank: int, seen: Watch, waited: bool) -> bool:
    """Whether a process has fallen silent, was replaced, or is known to be dead.

    Args:
        rank: of the process.
        seen: its heartbeat since the exchange broke.
        waited: whether it was waited for until the limit, so that its heartbeat before counts too.
    """
    heartbeat = monitor.heartbeat_of(rank)
    stale = seen.is_stale(heartbeat) or (waited and monitor.watches[rank].is_stale(heartbeat))
    if stale or _is_new(monitor, rank, heartbeat):
        return True
    return (
        heartbeat is not None
        and monitor.is_gone is not None
        and monitor.is_gone(monitor.names[rank], heartbeat["pid"])
    )


def _is_new(monitor: Monitor, rank: int, heartbeat: dict[str, Any] | None) -> bool:
    """Whether a process is not the one that was called into this generation, so that that one is dead."""
    found = None if heartbeat is None else (heartbeat["host"], heartbeat["pid"])
    return found is not None and monitor.processes.get(rank, found) != found


def _await_diagnosis(monitor: Monitor, own_limit: bool, limit_s: float, limit_name: str) -> KdclError:
    began, watch = time.monotonic(), monitor.watches[monitor.last] if own_limit else Watch()
    while (error := monitor.failure()) is None:
        heartbeat = monitor.heartbeat_of(monitor.last)
        if watch.is_stale(heartbeat):
            return monitor.report(monitor.coordinator_lost("gives no sign of life"))
        if time.monotonic() > began + _patience(monitor, heartbeat, own_limit, limit_s):
            return monitor.report(monitor.coordinator_lost(f"did not answer within {limit_name}"))
        time.sleep(POLL_S)
    return error


def _patience(monitor: Monitor, heartbeat: dict[str, Any] | None, own_limit: bool, limit_s: float) -> float:
    """Seconds that a coordinator which lives has for its diagnosis.

    While it forms an ensemble it waits for nobody, in an exchange it notices that this process closed
    its connections; else its storage may be slow, or it waits for students that are busy.
    """
    if own_limit and heartbeat is not None and not monitor.has(monitor.own(f"cut/{monitor.last}")):
        if heartbeat["phase"] == "ensemble" and heartbeat["stack"] is not None:
            return 0.0
        if heartbeat["phase"] in ("ensemble", "gather", "broadcast"):
            return GRACE_S
    return limit_s + GRACE_S + STALE_S


def _lost(monitor: Monitor, ranks: Sequence[int], how: str) -> KdclError:
    """The students of some ranks are dead, or others waited too long for them."""
    heartbeats = {rank: monitor.heartbeat_of(rank) or {} for rank in ranks}
    monitor.lost = [
        (monitor.names[rank], heartbeat["pid"])
        for rank, heartbeat in heartbeats.items()
        if heartbeat and not _is_new(monitor, rank, heartbeat)
    ]
    names = ", ".join(monitor.names[rank] for rank in ranks)
    seen = heartbeats[ranks[0]]
    if (
        seen and seen["generation"] != monitor.generation
    ):  # it has not told of this one, and so has just begun
        seen = {"host": seen["host"], "step": monitor.heartbeat.step, "phase": monitor.heartbeat.phase}
    # A heartbeat is up to a second old: it tells the phase only if it is of the step that is waited for, or
    # if its process has stood there for long.
    step = seen["step"] if seen.get("stack") else max(monitor.heartbeat.step, seen.get("step", 0))
    return StudentLost(
        f"{names} {how}; see its log for the reason",
        student=monitor.names[ranks[0]],
        step=step,
        phase=seen.get("phase") if seen.get("step") == step else None,
        host=seen.get("host"),
        detail=seen.get("stack"),
    )


def _nobody_lost(monitor: Monitor, cause: BaseException, late: Sequence[int], limit_name: str) -> KdclError:
    """All live and were cut off: one was too slow, which answers again by now, or a link is bad."""
    names = ", ".join(monitor.names[rank] for rank in late)
    slow = f"{names} waited longer than {limit_name}, although every process lives: raise it"
    broke = f"the exchange broke although every process lives: {one_line(cause)}"
    return ExchangeBroke(slow if late else broke, step=monitor.heartbeat.step, phase=monitor.heartbeat.phase)
