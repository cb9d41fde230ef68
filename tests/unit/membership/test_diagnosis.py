"""Which process is lost: each outcome of the pure functions, by what was observed."""

from __future__ import annotations

from typing import Any

import pytest

from kdcl_dist.membership.diagnosis import (
    GRACE_S,
    NOTICE_S,
    CoordinatorObservation,
    Decision,
    Outcome,
    PeerState,
    StudentsObservation,
    classify,
    classify_coordinator,
    classify_start,
)
from kdcl_dist.membership.heartbeat import STALE_S

LIMIT_S, COORDINATOR = 30.0, 3
#: A student whose heartbeat is the one from before the wait; one that has sent another since.
BUSY, BEATS = PeerState(beats=1), PeerState(beats=2)
STALE, STALE_BEFORE, GONE = PeerState(stale=True), PeerState(stale_before=True), PeerState(gone=True)
WAIT, NOBODY = Decision(Outcome.WAIT), Decision(Outcome.NOBODY_LOST)


def died(*ranks: int) -> Decision:
    return Decision(Outcome.DIED, ranks)


def no_answer(*ranks: int) -> Decision:
    return Decision(Outcome.NO_ANSWER, ranks)


@pytest.mark.parametrize(
    ("state", "limit_ended", "is_dead"),
    [
        (BUSY, False, False),
        (BUSY, True, False),
        (STALE, False, True),
        (GONE, False, True),
        (STALE_BEFORE, False, False),  # the exchange broke now, so the wait has only begun
        (STALE_BEFORE, True, True),
    ],
)
def test_a_process_is_dead_that_is_silent_or_gone(state: PeerState, limit_ended: bool, is_dead: bool) -> None:
    assert state.is_dead(limit_ended) is is_dead


@pytest.mark.parametrize(
    ("elapsed_s", "silent", "decision"),
    [
        # All report that their connections were closed: nobody is lost.
        (0.1, {}, NOBODY),
        # A live student may be busy until the limit, however often its heart beats.
        (0.1, {1: BUSY}, WAIT),
        (LIMIT_S - 0.1, {1: BEATS}, WAIT),
        (LIMIT_S, {1: BEATS}, no_answer(1)),
        (LIMIT_S, {0: BEATS, 2: BUSY}, no_answer(0, 2)),
        # The dead are named once no live student is silent, or at the limit.
        (0.1, {1: GONE}, died(1)),
        (0.1, {1: STALE}, died(1)),
        (0.1, {0: STALE, 1: GONE}, died(0, 1)),
        (0.1, {0: BUSY, 1: GONE}, WAIT),
        (LIMIT_S, {0: BUSY, 1: GONE}, died(1)),
        # A heartbeat from before the exchange broke proves nothing without a limit that ended.
        (0.1, {1: STALE_BEFORE}, WAIT),
    ],
)
def test_after_a_closed_connection(
    elapsed_s: float, silent: dict[int, PeerState], decision: Decision
) -> None:
    assert classify(StudentsObservation(elapsed_s, (), silent), limit_s=LIMIT_S) == decision


@pytest.mark.parametrize("late", [(COORDINATOR,), (0,), (0, COORDINATOR)])
@pytest.mark.parametrize(
    ("elapsed_s", "silent", "decision"),
    [
        (0.1, {}, NOBODY),
        # A live student reports by its next heartbeat, unless it is the one that the others waited for.
        (0.1, {1: BUSY}, WAIT),
        (NOTICE_S + 0.1, {1: BUSY}, WAIT),
        (NOTICE_S, {1: BEATS}, WAIT),
        (NOTICE_S + 0.1, {1: BEATS}, no_answer(1)),
        (NOTICE_S + 0.1, {1: BEATS, 2: BUSY}, WAIT),
        (NOTICE_S + 0.1, {1: BEATS, 2: BEATS}, no_answer(1, 2)),
        (GRACE_S - 0.1, {1: BUSY}, WAIT),
        (GRACE_S, {1: BUSY}, no_answer(1)),
        # Dead students are named alone, as students that did not answer within the limit.
        (0.1, {1: STALE_BEFORE}, no_answer(1)),
        (0.1, {1: GONE}, no_answer(1)),
        (0.1, {1: GONE, 2: BUSY}, WAIT),
        (NOTICE_S + 0.1, {1: GONE, 2: BEATS}, no_answer(1)),
        (GRACE_S, {1: STALE_BEFORE, 2: BUSY}, no_answer(1)),
    ],
)
def test_after_a_limit_ended(
    late: tuple[int, ...], elapsed_s: float, silent: dict[int, PeerState], decision: Decision
) -> None:
    assert classify(StudentsObservation(elapsed_s, late, silent), limit_s=LIMIT_S) == decision


@pytest.mark.parametrize(
    ("unfinished", "silent", "decision"),
    [
        ([1], {0: BUSY, 1: BUSY}, no_answer(1)),
        ([0, 1], {0: BUSY, 1: BUSY, 2: BUSY}, no_answer(0, 1)),
        ([0, 1], {0: BUSY, 1: STALE_BEFORE}, no_answer(1)),
        ([1], {0: GONE, 1: BUSY}, no_answer(1)),
        # A student that reports its broken exchange lives: the wait for the others begins.
        ([1], {0: BUSY}, WAIT),
        ([1], {}, NOBODY),
    ],
)
def test_students_whose_transfer_was_not_done_are_named_at_once(
    unfinished: list[int], silent: dict[int, PeerState], decision: Decision
) -> None:
    seen = StudentsObservation(0.0, (COORDINATOR,), silent)
    assert classify(seen, limit_s=LIMIT_S, unfinished=unfinished) == decision


LONG_S = LIMIT_S + GRACE_S + STALE_S


@pytest.mark.parametrize(
    ("seen", "patience_s"),
    [
        # Where another process closed the connection, the coordinator may wait for busy students.
        ({}, LONG_S),
        ({"phase": "gather"}, LONG_S),
        ({"phase": "ensemble", "stuck": True}, LONG_S),
        # In an exchange a live coordinator notices that this student closed its connections.
        ({"own_limit": True, "phase": "gather"}, GRACE_S),
        ({"own_limit": True, "phase": "broadcast", "stuck": True}, GRACE_S),
        ({"own_limit": True, "phase": "ensemble"}, GRACE_S),
        # An ensemble waits for nobody; its storage may be slow, and so may students that it waits for.
        ({"own_limit": True, "phase": "ensemble", "stuck": True}, 0.0),
        ({"own_limit": True, "phase": "checkpoint"}, LONG_S),
        ({"own_limit": True, "phase": None}, LONG_S),
        ({"own_limit": True, "phase": "gather", "broke": True}, LONG_S),
        ({"own_limit": True, "phase": "ensemble", "stuck": True, "broke": True}, LONG_S),
    ],
)
def test_a_student_waits_for_the_diagnosis_by_the_coordinators_phase(
    seen: dict[str, Any], patience_s: float
) -> None:
    def outcome(elapsed_s: float, **more: Any) -> Outcome:
        observation = CoordinatorObservation(elapsed_s=elapsed_s, **seen, **more)
        return classify_coordinator(observation, limit_s=LIMIT_S)

    assert outcome(patience_s) is Outcome.WAIT
    assert outcome(patience_s + 0.1) is Outcome.NO_ANSWER
    assert outcome(0.0, stale=True) is Outcome.DIED


STUDENT_S = LIMIT_S + GRACE_S + STALE_S


@pytest.mark.parametrize(
    ("elapsed_s", "missing", "is_coordinator", "decision"),
    [
        (0.1, {0: BUSY, 1: BUSY}, True, WAIT),
        (0.1, {0: BUSY, 1: GONE}, True, died(1)),
        (0.1, {0: STALE, 1: GONE}, True, died(0, 1)),
        (0.1, {1: STALE_BEFORE}, True, WAIT),
        (LIMIT_S, {1: BUSY}, True, WAIT),
        (LIMIT_S + 0.1, {0: BUSY, 1: BEATS}, True, no_answer(0, 1)),
        (LIMIT_S + 0.1, {0: BUSY, 1: GONE}, True, died(1)),
        (LIMIT_S + 0.1, {}, True, WAIT),  # the last student became ready at the same time
        (0.1, {3: STALE}, False, died(3)),
        (STUDENT_S, {3: BUSY}, False, WAIT),
        (STUDENT_S + 0.1, {3: BUSY}, False, no_answer(3)),
        (STUDENT_S + 0.1, {}, False, no_answer()),  # the coordinator should have named the missing students
    ],
)
def test_before_the_group_forms(
    elapsed_s: float, missing: dict[int, PeerState], is_coordinator: bool, decision: Decision
) -> None:
    found = classify_start(elapsed_s, missing, limit_s=LIMIT_S, is_coordinator=is_coordinator)
    assert found == decision
