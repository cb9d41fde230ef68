"""Why an exchange broke: who died, hangs or was cut off. The coordinator judges; students wait for that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kdcl_dist.errors import CoordinatorLost, ExchangeBroke, KdclError, StudentLost, one_line
from kdcl_dist.membership.heartbeat import STALE_S, Watch
from kdcl_dist.membership.monitor import ANSWER_S, POLL_S, Board

__all__ = ["GRACE_S", "await_all", "explain", "timed_out"]

#: How long survivors may take to say that they were cut off too, and the time in which most do.
GRACE_S, NOTICE_S = 3.0, 0.5
#: How a member's exchange ended: by its limit, or because another closed the connection.
LATE, CLOSED = "late", "closed"


def await_all(board: Board, limit_s: float) -> None:
    """Wait until all who were called into a generation are about to form its group.

    While gloo forms a group nobody looks at the board; so who dies or fails before is found here.

    Raises:
        KdclError: the first failure of the generation: who died or failed, or did not come in time.
    """
    board.call(board.store.set, _here(board, board.rank), "1")
    watches = {rank: Watch() for rank in (board.present if board.is_coordinator else [board.last])}
    began, keys = time.monotonic(), [_here(board, rank) for rank in (*board.present, board.last)]
    while not board.has(*keys):
        board.raise_failure()
        late = time.monotonic() - began > limit_s + (0 if board.is_coordinator else GRACE_S + STALE_S)
        missing = {rank: seen for rank, seen in watches.items() if not board.has(_here(board, rank))}
        dead = [rank for rank, seen in missing.items() if _is_dead(board, rank, seen, False)]
        if dead or (late and (missing or not board.is_coordinator)):  # students leave it to it to name one
            how = "died" if dead else "did not answer within limits.startup_s"
            is_judge = board.is_coordinator
            found = _lost(board, dead or list(missing), how) if is_judge else board.coordinator_lost(how)
            board.cause = board.report(found)
            raise board.cause
        time.sleep(POLL_S)


def _here(board: Board, rank: int) -> str:
    return board.own(f"here/{rank}")


def timed_out(cause: BaseException) -> bool:
    """Whether a transfer ended by its limit rather than by a closed connection."""
    return "timed out" in str(cause).lower()


def explain(
    board: Board,
    cause: BaseException,
    *,
    limit_s: float,
    limit_name: str = "limits.step_s",
    unheard: Sequence[int] = (),
) -> KdclError:
    """Why a transfer failed: the first failure of the generation, found or judged; also the board's `cause`.

    The coordinator names the students that it waited for in vain. Where it does not know them it waits
    until every student has either said that it was cut off too or fallen silent, and names the silent
    ones. Students wait for that verdict.

    Args:
        board: of this process.
        cause: what the transfer raised.
        limit_s: seconds that a live student may be busy before it notices.
        limit_name: the recipe's field of the limit that the transfer had.
        unheard: ranks that are known not to have done their part of it when its limit ended.
    """
    late = timed_out(cause)
    how, answer_s = (LATE, _answer_s(board)) if late else (CLOSED, ANSWER_S)
    try:
        board.call(board.store.set, board.own(f"cut/{board.rank}"), how, answer_s=answer_s)
        if board.is_coordinator:
            found = _judge(board, cause, late, limit_s, limit_name, unheard)
        else:
            found = _await_verdict(board, late, limit_s, limit_name)
    except CoordinatorLost as error:
        found = error
    except Exception as error:
        found = board.coordinator_lost(f"cannot be reached ({one_line(error)})")
    board.cause = found
    return found


def _answer_s(board: Board) -> float:
    """Seconds in which the store must answer when a limit has ended: some have passed since a pulse."""
    asked = board.asked
    return max(NOTICE_S, STALE_S - (0 if asked is None else time.monotonic() - asked))


def _judge(
    board: Board,
    cause: BaseException,
    own_limit: bool,
    limit_s: float,
    limit_name: str,
    unheard: Sequence[int],
) -> KdclError:
    began, late = time.monotonic(), [board.rank] if own_limit else []
    silent, dead = {rank: Watch() for rank in board.present}, list[int]()
    while time.monotonic() < began + (GRACE_S if late else limit_s):
        if (error := board.failure()) is not None:
            return error
        late += _hear(board, silent)
        dead = [rank for rank, seen in silent.items() if _is_dead(board, rank, seen, bool(late))]
        if known := [rank for rank in unheard if rank in silent]:
            silent = {rank: silent[rank] for rank in known}
            break
        busy = [seen for rank, seen in silent.items() if rank not in dead]
        # Who lives has noticed by its next pulse, unless it is busy; and the limit ended on who is busy.
        noticed = late and time.monotonic() > began + NOTICE_S and all(seen.beats > 1 for seen in busy)
        if noticed or not busy:
            break
        time.sleep(POLL_S)
    lost = [rank for rank in dead if rank in silent] or list(silent)  # beside them others are just busy
    if not lost:
        return board.report(_nobody_lost(board, cause, late, limit_name))
    died = not late and any(rank in dead for rank in lost)
    return board.report(_lost(board, lost, "died" if died else f"did not answer within {limit_name}"))


def _hear(board: Board, silent: dict[int, Watch]) -> list[int]:
    """Take out those who said that they were cut off; returns those of them whose own limit ended.

    One whose limit ended closed its connections, and so broke those of the others.
    """
    heard = [rank for rank in silent if board.has(board.own(f"cut/{rank}"))]
    for rank in heard:
        del silent[rank]
    return [r for r in heard if board.call(board.store.get, board.own(f"cut/{r}")).decode() == LATE]


def _is_dead(board: Board, rank: int, seen: Watch, waited: bool) -> bool:
    """Whether a process has fallen silent, was replaced, or is known to be dead.

    Args:
        rank: of the process.
        seen: its pulse since the exchange broke.
        waited: whether it was waited for until the limit, so that its pulse before counts too.
    """
    pulse = board.pulse_of(rank)
    stale = seen.is_stale(pulse) or (waited and board.watches[rank].is_stale(pulse))
    if stale or _is_new(board, rank, pulse):
        return True
    return pulse is not None and board.is_gone is not None and board.is_gone(board.names[rank], pulse["pid"])


def _is_new(board: Board, rank: int, pulse: dict[str, Any] | None) -> bool:
    """Whether a process is not the one that was called into this generation, so that that one is dead."""
    found = None if pulse is None else (pulse["host"], pulse["pid"])
    return found is not None and board.processes.get(rank, found) != found


def _await_verdict(board: Board, own_limit: bool, limit_s: float, limit_name: str) -> KdclError:
    began, watch = time.monotonic(), board.watches[board.last] if own_limit else Watch()
    while (error := board.failure()) is None:
        pulse = board.pulse_of(board.last)
        if watch.is_stale(pulse):
            return board.report(board.coordinator_lost("gives no sign of life"))
        if time.monotonic() > began + _patience(board, pulse, own_limit, limit_s):
            return board.report(board.coordinator_lost(f"did not answer within {limit_name}"))
        time.sleep(POLL_S)
    return error


def _patience(board: Board, pulse: dict[str, Any] | None, own_limit: bool, limit_s: float) -> float:
    """Seconds that a coordinator which lives has for its verdict.

    While it forms an ensemble it waits for nobody, in an exchange it notices that this process closed
    its connections; else its storage may be slow, or it waits for students that are busy.
    """
    if own_limit and pulse is not None and not board.has(board.own(f"cut/{board.last}")):
        if pulse["phase"] == "ensemble" and pulse["stack"] is not None:
            return 0.0
        if pulse["phase"] in ("ensemble", "gather", "broadcast"):
            return GRACE_S
    return limit_s + GRACE_S + STALE_S


def _lost(board: Board, ranks: Sequence[int], how: str) -> KdclError:
    """The students of some ranks are dead, or others waited too long for them."""
    pulses = {rank: board.pulse_of(rank) or {} for rank in ranks}
    board.lost = [
        (board.names[rank], pulse["pid"])
        for rank, pulse in pulses.items()
        if pulse and not _is_new(board, rank, pulse)
    ]
    names = ", ".join(board.names[rank] for rank in ranks)
    seen = pulses[ranks[0]]
    if seen and seen["generation"] != board.generation:  # it has not told of this one, and so has just begun
        seen = {"host": seen["host"], "step": board.pulse.step, "phase": board.pulse.phase}
    # A pulse is up to a second old: it tells the phase only if it is of the step that is waited for, or
    # if its process has stood there for long.
    step = seen["step"] if seen.get("stack") else max(board.pulse.step, seen.get("step", 0))
    return StudentLost(
        f"{names} {how}; see its log for the reason",
        student=board.names[ranks[0]],
        step=step,
        phase=seen.get("phase") if seen.get("step") == step else None,
        host=seen.get("host"),
        detail=seen.get("stack"),
    )


def _nobody_lost(board: Board, cause: BaseException, late: Sequence[int], limit_name: str) -> KdclError:
    """All live and were cut off: one was too slow, which answers again by now, or a link is bad."""
    names = ", ".join(board.names[rank] for rank in late)
    slow = f"{names} waited longer than {limit_name}, although every process lives: raise it"
    broke = f"the exchange broke although every process lives: {one_line(cause)}"
    return ExchangeBroke(slow if late else broke, step=board.pulse.step, phase=board.pulse.phase)
