"""What happens to a run after a failure: pure decisions, without processes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from kdcl_dist.config.sections import Failure
from kdcl_dist.errors import (
    CheckpointError,
    ContributionError,
    CoordinatorFailed,
    CoordinatorLost,
    ExchangeBroke,
    KdclError,
    NonFiniteLogits,
    StartupTimeout,
    StorageError,
    StudentFailed,
    StudentLost,
    UserError,
)

__all__ = ["Decision", "decide", "is_fatal", "survivors_can_continue"]

#: Failures that repeat with the same code and data, or that only the user can mend.
FINAL = (UserError, ContributionError, StartupTimeout, StorageError, CheckpointError)


class Decision(Enum):
    """What follows a failure."""

    #: All students return to the latest checkpoint.
    RESTART = "restart"
    #: The survivors continue with the state that they have.
    CONTINUE = "continue"
    #: The run ends with the failure.
    END = "end"


def decide(failure: Failure, past: Sequence[KdclError], cause: KdclError, *, has_state: bool) -> Decision:
    """What follows a failure.

    Args:
        failure: the recipe's policy.
        past: the failures that the run survived.
        cause: the new one.
        has_state: whether the coordinator still has the state of a generation that the survivors share.
    """
    if is_fatal(failure, past, cause):
        return Decision.END
    if failure.policy == "continue" and has_state and survivors_can_continue(cause):
        return Decision.CONTINUE
    return Decision.RESTART


def is_fatal(failure: Failure, past: Sequence[KdclError], cause: KdclError) -> bool:
    """Whether the run ends with a failure; arguments as `decide`."""
    if _is_final(cause) or len(past) >= failure.allowed:
        return True
    return any(_is_repeated(cause, earlier) for earlier in past) or _fails_to_start(past, cause)


def _is_final(cause: KdclError) -> bool:
    """Whether no process that is started again could help; it may where one student is late."""
    is_late = isinstance(cause, StartupTimeout) and cause.student is not None
    return isinstance(cause, FINAL) and not is_late and not isinstance(cause, NonFiniteLogits)


def survivors_can_continue(cause: KdclError) -> bool:
    """Whether the survivors of a failure can continue with the state that they have.

    The coordinator's state is lost with the coordinator: then all return to the latest checkpoint.
    """
    return not isinstance(cause, (CoordinatorFailed, CoordinatorLost))


def _is_repeated(cause: KdclError, earlier: KdclError) -> bool:
    """Whether code raised at the same student, step and phase again, as it would after every restart.

    A lost process may have been killed, or its host may have died: that says nothing of its code. Nor does
    a broken connection.
    """
    if isinstance(cause, (StudentLost, CoordinatorLost, ExchangeBroke)) or type(cause) is not type(earlier):
        return False
    where = (cause.student, cause.step, cause.phase)
    return None not in where[1:] and where == (earlier.student, earlier.step, earlier.phase)


def _fails_to_start(past: Sequence[KdclError], cause: KdclError) -> bool:
    """Whether a student fails at its start, where there is no step, as in the failure before."""
    return (
        bool(past)
        and isinstance(cause, (StudentFailed, StartupTimeout))
        and cause.phase == "start"
        and _start_of(cause) == _start_of(past[-1])
    )


def _start_of(error: KdclError) -> tuple[object, ...]:
    student = (error.student or "").partition("/")[0]  # replicas fail alike
    return type(error), student, error.phase, error.message
