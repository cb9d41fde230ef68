"""The failures that a run has survived, in its record; they are written while the next generation forms."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from kdcl_dist.errors import CoordinatorLost, KdclError, StorageError
from kdcl_dist.run.record import past_failures, record_survival
from kdcl_dist.run.run import Run

__all__ = ["PastFailures"]


class PastFailures:
    """The failures that this start of a run has survived, those of coordinators before this one too.

    Args:
        run: the run.

    Attributes:
        causes: of each, in their order.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.causes = run, past_failures(run)
        self._writing: threading.Thread | None = None

    def add(self, cause: KdclError) -> None:
        """Count a failure."""
        self.causes.append(cause)
        self._write()

    def complete_last(self, reports: Sequence[KdclError]) -> None:
        """Add what students know of the death of the coordinator before this one, once.

        Args:
            reports: how they lost it.
        """
        cause = self.causes[-1] if self.causes else None
        if reports and isinstance(cause, CoordinatorLost) and cause.host is None:
            last = max(reports, key=lambda error: error.step or 0)
            cause.at(step=last.step, phase=last.phase, host=last.host).detail = last.detail
            self._write()

    def settle(self) -> None:
        """Wait until all are in the record, or the storage has refused for as long as it is retried."""
        if self._writing is not None:
            self._writing.join()

    def _write(self) -> None:
        self.settle()
        self._writing = threading.Thread(target=self._record, args=([*self.causes],), name="failure-record")
        self._writing.start()

    def _record(self, causes: Sequence[KdclError]) -> None:
        with contextlib.suppress(StorageError):
            record_survival(self.run, causes)
