"""What follows a failure: every policy with every kind of failure, and failures that repeat."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from cohorts import MakeRecipe

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.sections import Failure
from kdcl_dist.coordinator.recovery_policy import Decision, decide, is_fatal, survivors_can_continue
from kdcl_dist.errors import (
    CheckpointError,
    CoordinatorFailed,
    CoordinatorLost,
    ExchangeBroke,
    KdclError,
    MisalignedIds,
    ModelError,
    NonFiniteLogits,
    ShapeMismatch,
    SilentCorruption,
    StartupTimeout,
    StorageError,
    StudentFailed,
    StudentLost,
)

RESTART, CONTINUE, END = Decision.RESTART, Decision.CONTINUE, Decision.END
LOST = StudentLost("x", student="b", step=3)


def failed(step: int, student: str = "b", phase: str = "forward") -> KdclError:
    return StudentFailed("x", student=student, step=step, phase=phase)


#: By kind of failure what follows the first one, under the policies rollback, continue and stop.
TABLE: list[tuple[KdclError, tuple[Decision, Decision, Decision]]] = [
    (LOST, (RESTART, CONTINUE, END)),
    (failed(3), (RESTART, CONTINUE, END)),
    (ExchangeBroke("x", step=3, phase="gather"), (RESTART, CONTINUE, END)),
    (SilentCorruption("x", student="b", step=3, phase="backward"), (RESTART, CONTINUE, END)),
    (NonFiniteLogits("x", student="b", step=3, phase="ensemble"), (RESTART, CONTINUE, END)),
    (CoordinatorLost("x", step=3, phase="gather"), (RESTART, RESTART, END)),
    (CoordinatorFailed("x", step=3, phase="ensemble"), (RESTART, RESTART, END)),
    (ModelError("x", student="b"), (END, END, END)),
    (MisalignedIds("x", student="b", step=3), (END, END, END)),
    (ShapeMismatch("x", student="b", step=3), (END, END, END)),
    (StartupTimeout("x"), (END, END, END)),
    (StorageError("x"), (END, END, END)),
    (CheckpointError("x"), (END, END, END)),
]
POLICIES = ("rollback", "continue", "stop")


@pytest.mark.parametrize(("cause", "expected"), TABLE, ids=[type(row[0]).__name__ for row in TABLE])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_first_failure(policy: str, cause: KdclError, expected: tuple[Decision, ...]) -> None:
    failure = Failure(policy=policy)
    assert decide(failure, [], cause, has_state=True) is expected[POLICIES.index(policy)]


@pytest.mark.parametrize(("cause", "expected"), TABLE, ids=[type(row[0]).__name__ for row in TABLE])
def test_without_a_state_all_return_to_the_checkpoint(
    cause: KdclError, expected: tuple[Decision, ...]
) -> None:
    found = decide(Failure(policy="continue"), [], cause, has_state=False)
    assert found is (END if expected[1] is END else RESTART)


@pytest.mark.parametrize(("policy", "has_state"), list(product(POLICIES, [False, True])))
def test_the_decision_is_end_exactly_where_the_failure_is_fatal(policy: str, has_state: bool) -> None:
    failure = Failure(policy=policy, max_failures=2)
    for (cause, _), past in product(TABLE, ([], [failed(3)], [failed(1), failed(2)])):
        ends = decide(failure, past, cause, has_state=has_state) is END
        assert ends is is_fatal(failure, past, cause)


@pytest.mark.parametrize(
    ("policy", "past", "cause", "ends"),
    [
        ({}, [], failed(3), False),
        ({}, [failed(3)], failed(3), True),
        ({}, [failed(3)], failed(4), False),
        ({}, [failed(3, "a")], failed(3), False),
        ({}, [LOST] * 7, LOST, False),
        ({}, [LOST] * 8, LOST, True),
        ({"max_failures": 0}, [], CoordinatorLost("x"), True),
        ({}, [ExchangeBroke("x", step=3, phase="gather")], ExchangeBroke("x", step=3, phase="gather"), False),
        (
            {},
            [CoordinatorLost("x", step=3, phase="gather")],
            CoordinatorLost("x", step=3, phase="gather"),
            False,
        ),
        (  # hardware hardly fails at the same step twice, code does
            {},
            [SilentCorruption("x", student="b", step=3, phase="backward")],
            SilentCorruption("y", student="b", step=3, phase="backward"),
            True,
        ),
        ({"policy": "stop"}, [], StudentLost("x"), True),
        ({}, [failed(3, phase="backward")], failed(3), False),
        ({}, [failed(1), failed(3), failed(2)], failed(3), True),
        ({}, [StudentFailed("x", student="b")], StudentFailed("x", student="b"), False),
        ({}, [CoordinatorFailed("x", step=3, phase="a")], CoordinatorFailed("x", step=3, phase="a"), True),
        ({"policy": "continue"}, [failed(3)], failed(3), True),
        ({"policy": "continue", "max_failures": 1}, [LOST], LOST, True),
    ],
)
def test_when_a_run_gives_up(
    policy: dict[str, Any], past: list[KdclError], cause: KdclError, ends: bool
) -> None:
    assert is_fatal(Failure(**policy), past, cause) is ends


def test_only_the_coordinators_state_is_lost_with_it() -> None:
    lost = [type(cause) for cause, _ in TABLE if not survivors_can_continue(cause)]
    assert lost == [CoordinatorLost, CoordinatorFailed]


def test_the_policy_may_change_on_resume(make_recipe: MakeRecipe) -> None:
    from kdcl_dist.config.differences import differences

    def recipe(*more: str) -> Recipe:
        return make_recipe(*more)

    assert not differences(recipe(), recipe("failure.policy=stop", "failure.max_failures=1"))


def at_start(message: str = "x", student: str = "b") -> KdclError:
    return StudentFailed(message, student=student, phase="start")


def late(student: str = "b") -> KdclError:
    return StartupTimeout("x", student=student, phase="start")


@pytest.mark.parametrize(
    ("past", "cause", "ends"),
    [
        ([], at_start(), False),
        ([at_start()], at_start(), True),
        ([at_start(student="b/0")], at_start(student="b/1"), True),
        ([at_start("y")], at_start(), False),
        ([at_start(student="a")], at_start(), False),
        ([at_start(), LOST], at_start(), False),
        ([LOST], at_start(), False),
        ([StudentLost("x", student="b", phase="start")], StudentLost("x", student="b", phase="start"), False),
        ([], late(), False),
        ([late()], late(), True),
        ([late("a")], late(), False),
        ([LOST], late(), False),
        ([at_start()], late(), False),
    ],
)
def test_a_start_that_fails_alike_twice_in_a_row_is_final(
    past: list[KdclError], cause: KdclError, ends: bool
) -> None:
    assert is_fatal(Failure(), past, cause) is ends
