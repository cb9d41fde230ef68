"""The end of a run: what is left to be written once all is trained and saved."""

from __future__ import annotations

from collections.abc import Callable

from kdcl_dist.coordinator.checkpointing import CoordinatorState
from kdcl_dist.errors import CheckpointError, StorageError
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.record import update_record
from kdcl_dist.run.run import Run

__all__ = ["record_end"]


def record_end(run: Run, state: CoordinatorState, emit: Callable[[Event], None], *, restored: bool) -> None:
    """Write the last metrics and the files of logits, then that the run is finished.

    The last checkpoint holds all that a failed write here would lose.

    Args:
        run: the run.
        state: of the coordinator after the last epoch.
        emit: called with a line on each file.
        restored: whether something of the run folder was deleted while the run trained.

    Raises:
        CheckpointError: the last checkpoint was deleted.
        StorageError: the storage refuses.
    """
    try:
        if restored and latest(run.folder, lambda text: emit(Warned(text))) is None:
            raise CheckpointError(f"the last checkpoint was deleted from {run.folder}: nothing is saved")
        if (error := state.metrics.flush(run.recipe.limits.patience_s)) is not None:
            raise error
        for line in state.record.save(run):
            emit(Note(f"logits: {line}"))
        early = {} if (why := state.early_end) is None else {"stopped_early": why}
        update_record(run.folder, state="finished", results=state.metrics.results, **early)
    except StorageError as error:
        error.message += "; the training is complete and saved: --resume writes what is missing"
        raise
