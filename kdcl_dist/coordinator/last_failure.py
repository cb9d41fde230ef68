"""What the students know of the death of a coordinator, and the coordinator that replaces it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from kdcl_dist.errors import CoordinatorLost, KdclError, StorageError
from kdcl_dist.run.record import record_survival
from kdcl_dist.run.run import Run

__all__ = ["complete_last"]


def complete_last(run: Run, past: Sequence[KdclError], reports: Sequence[KdclError]) -> None:
    """Add to the record of a coordinator that died, once, what the students report of its death.

    Args:
        run: the run.
        past: the failures that it has survived; the last is completed.
        reports: how students lost the coordinator before this one.
    """
    cause = past[-1] if past else None
    if reports and isinstance(cause, CoordinatorLost) and cause.host is None:
        last = max(reports, key=lambda error: error.step or 0)
        cause.at(step=last.step, phase=last.phase, host=last.host).detail = last.detail
        with contextlib.suppress(StorageError):
            record_survival(run, past)
