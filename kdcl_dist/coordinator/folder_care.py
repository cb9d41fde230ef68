"""The coordinator's care of the run folder while students wait: its owner, and files that were deleted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kdcl_dist.errors import StorageError
from kdcl_dist.run.events import Event, Warned
from kdcl_dist.run.record import check_owner, read_record, restore_deleted
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import BRIEF_S

__all__ = ["FolderCare"]


class FolderCare:
    """Sees that a run folder is this start's and whole, and warns of failed writes.

    Args:
        run: the run.
        emit: called with each warning.

    Attributes:
        brief: the folder, with a limit for which students can wait.
        restored: whether something had been deleted and was written again.
    """

    def __init__(self, run: Run, emit: Callable[[Event], None]) -> None:
        self.run, self.emit, self.brief = run, emit, run.folder.with_limit(BRIEF_S)
        self.record, self.restored = read_record(run.folder), False

    def check(self) -> None:
        """Check that this start owns the folder, and write again what a run folder cannot do without."""
        check_owner(self.run)
        self.attempt(self._restore_deleted)

    def _restore_deleted(self) -> None:
        brief_run = replace(self.run, folder=self.brief)
        if gone := restore_deleted(brief_run, self.record):
            self.restored = True
            self.emit(
                Warned(
                    f"{' and '.join(gone)} of {self.run.folder} was deleted during the run, and is written "
                    "again; metrics and checkpoints that were deleted with it stay lost"
                )
            )

    def attempt(self, write: Callable[[], StorageError | None]) -> None:
        """Write something, and warn of a failed write, which is repeated later."""
        try:
            error = write()
        except StorageError as raised:
            error = raised
        if error is not None:
            self.emit(Warned(f"{error.message}; training goes on, this is tried again"))
