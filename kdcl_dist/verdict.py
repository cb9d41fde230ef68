"""Why an exchange broke: who died, hangs or was cut off. The coordinator judges; students wait for that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kdcl_dist.board import ANSWER_S, POLL_S, Board
from kdcl_dist.errors import CoordinatorLost, KdclError, StudentLost, one_line
from kdcl_dist.pulse import STALE_S, Watch

__all__ = ["GRACE_S", "explain"]

#: How long survivors may take to say that they were cut off too, and the time in which most do.
GRACE_S, NOTICE_S = 3.0, 0.5
#: How a member's exchange ended: by its limit, or because another closed the connection.
LATE, CLOSED = "late", "closed"


def explain(
    board: Board, cause: BaseException, *, timed_out: bool, limit_s: float, unheard: Sequence[int] = ()
) -> KdclError:
    """Why a transfer failed: the first failure of the generation, found or judged; also the board's `cause`.

    The coordinator names the students that it waited for in vain. Where it does not know them it waits
    until every student has either said that it was cut off too or fallen silent, and names the silent
    ones. Students wait for that verdict.

    Args:
        board: of this process.
        cause: what the transfer raised.
        timed_out: whether it ended by its limit rather than by a closed connection.
        limit_s: seconds that a live student may be busy before it notices.
        unheard: ranks that are known not to have done their part of it when its limit ended.
    """
    how, answer_s = (LATE, _answer_s(board)) if timed_out else (CLOSED, ANSWER_S)
    try:
        board.call(board.store.set, board.own(f"cut/{board.rank}"), how, answer_s=answer_s)
        if board.is_coordinator:
            found = _judge(board, cause, timed_out, limit_s, unheard)
        else:
            found = _await_verdict(board, timed_out, limit_s)
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
    board: Board, cause: BaseException, timed_out: bool, limit_s: float, unheard: Sequence[int]
) -> KdclError:
    began, late = time.monotonic(), [board.rank] if timed_out else []
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
        return board.report(_nobody_lost(board, cause, late))
    return board.report(_lost(board, lost, died=not late and any(rank in dead for rank in lost)))


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
    if stale or _is_new(board, pulse):
        return True
    return pulse is not None and board.is_gone is not None and board.is_gone(board.names[rank], pulse["pid"])


def _is_new(board: Board, pulse: dict[str, Any] | None) -> bool:
    """Whether a process is not of this generation: the one that was, in its place, is dead."""
    return pulse is not None and pulse["generation"] != board.generation


def _await_verdict(board: Board, timed_out: bool, limit_s: float) -> KdclError:
    began, watch = time.monotonic(), board.watches[board.last] if timed_out else Watch()
    while (error := board.failure()) is None:
        pulse = board.pulse_of(board.last)
        if watch.is_stale(pulse):
            return board.report(board.coordinator_lost("gives no sign of life"))
        if time.monotonic() > began + _patience(board, pulse, timed_out, limit_s):
            return board.report(board.coordinator_lost("did not answer within limits.step_s"))
        time.sleep(POLL_S)
    return error


def _patience(board: Board, pulse: dict[str, Any] | None, timed_out: bool, limit_s: float) -> float:
    """Seconds that a coordinator which lives has for its verdict.

    While it forms an ensemble it waits for nobody, in an exchange it notices that this process closed
    its connections; else its storage may be slow, or it waits for students that are busy.
    """
    if timed_out and pulse is not None and not board.has(board.own(f"cut/{board.last}")):
        if pulse["phase"] == "ensemble" and pulse["stack"] is not None:
            return 0.0
        if pulse["phase"] in ("ensemble", "gather", "broadcast"):
            return GRACE_S
    return limit_s + GRACE_S + STALE_S


def _lost(board: Board, ranks: Sequence[int], died: bool) -> KdclError:
    """The students of some ranks are dead, or others waited too long for them."""
    pulses = {rank: board.pulse_of(rank) or {} for rank in ranks}
    board.lost = [
        (board.names[rank], pulse["pid"])
        for rank, pulse in pulses.items()
        if pulse and not _is_new(board, pulse)
    ]
    names = ", ".join(board.names[rank] for rank in ranks)
    seen = pulses[ranks[0]]
    how = "died" if died else "did not answer within limits.step_s"
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


def _nobody_lost(board: Board, cause: BaseException, late: Sequence[int]) -> KdclError:
    """All live and were cut off: one was too slow, which answers again by now, or a link is bad."""
    names = ", ".join(board.names[rank] for rank in late)
    slow = f"{names} waited longer than limits.step_s, although every process lives: raise it"
    broke = f"the exchange broke although every process lives: {one_line(cause)}"
    return KdclError(slow if late else broke, step=board.pulse.step, phase=board.pulse.phase)
