"""Whether a run goes on after a failure. Pure decisions, without processes."""

from __future__ import annotations

from collections.abc import Sequence

from kdcl_dist.errors import (
    CheckpointError,
    ContributionError,
    KdclError,
    StartupTimeout,
    StorageError,
    StudentLost,
    UserError,
)
from kdcl_dist.recipe import Failure

__all__ = ["gives_up"]

#: What the same code does again with the same data, or what only the user can mend.
FINAL = (UserError, ContributionError, StartupTimeout, StorageError, CheckpointError)


def gives_up(failure: Failure, past: Sequence[KdclError], cause: KdclError) -> bool:
    """Whether a run ends with a failure instead of going back to its newest checkpoint.

    Args:
        failure: the recipe's policy.
        past: the failures that the run survived.
        cause: the new one.
    """
    if isinstance(cause, FINAL) or len(past) >= failure.allowed:
        return True
    return any(_same(cause, earlier) for earlier in past)


def _same(cause: KdclError, earlier: KdclError) -> bool:
    """Whether code raised at the same place again: going back to before it would repeat it for ever.

    A process that died or fell silent may have been killed, or its host: that says nothing of its code.
    """
    if isinstance(cause, StudentLost) or type(cause) is not type(earlier):
        return False
    place = (cause.student, cause.step, cause.phase)
    return None not in place[1:] and place == (earlier.student, earlier.step, earlier.phase)
