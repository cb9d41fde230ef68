"""Whether and how a run goes on after a failure. Pure decisions, without processes."""

from __future__ import annotations

from collections.abc import Sequence

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
    StudentLost,
    UserError,
)

__all__ = ["is_fatal", "survivors_can_continue"]

#: What the same code does again with the same data, or what only the user can mend.
FINAL = (UserError, ContributionError, StartupTimeout, StorageError, CheckpointError)


def is_fatal(failure: Failure, past: Sequence[KdclError], cause: KdclError) -> bool:
    """Whether a run ends with a failure instead of going back to its latest checkpoint.

    Args:
        failure: the recipe's policy.
        past: the failures that the run survived.
        cause: the new one.
    """
    final = isinstance(cause, FINAL) and not isinstance(cause, NonFiniteLogits)
    if final or len(past) >= failure.allowed:
        return True
    return any(_same(cause, earlier) for earlier in past)


def survivors_can_continue(cause: KdclError) -> bool:
    """Whether the students that a failure did not meet can go on from where they are.

    What the coordinator knows is lost with it: then all go back to the latest checkpoint.
    """
    return not isinstance(cause, (CoordinatorFailed, CoordinatorLost))


def _same(cause: KdclError, earlier: KdclError) -> bool:
    """Whether code raised at the same place again: going back to before it would repeat it for ever.

    A process that died or fell silent may have been killed, or its host: that says nothing of its code, nor
    does a connection that broke.
    """
    if isinstance(cause, (StudentLost, CoordinatorLost, ExchangeBroke)) or type(cause) is not type(earlier):
        return False
    place = (cause.student, cause.step, cause.phase)
    return None not in place[1:] and place == (earlier.student, earlier.step, earlier.phase)
