"""Callbacks of a call in Python: they run in the caller's process, beside the training."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol, runtime_checkable

from kdcl_dist.errors import UserError, one_line
from kdcl_dist.run.events import EpochEnded, Event, Started, Values

__all__ = ["Callback", "CallbackThread", "EpochState"]

#: Seconds for which the end of a run waits for callbacks that have not returned.
LIMIT_S = 60.0


@dataclass(frozen=True)
class EpochState:
    """What a callback learns of an epoch, and what it may ask for.

    Attributes:
        epoch: the epoch that has ended, from 1.
        epochs: of the run.
        train: means over the epoch's steps, by student: loss, distillation_loss, top1, ...
        test: results on test samples after it, by student and for "ensemble": loss (nats), top1 and top5
            (shares).
        val: those on validation samples.
    """

    epoch: int
    epochs: int
    train: Values
    test: Values
    val: Values
    _stop: threading.Event = field(repr=False)
    _save: threading.Event = field(repr=False)

    def stop(self) -> None:
        """Ask for a checkpoint and the end of the run, some steps later; it can be resumed."""
        self._stop.set()

    def save(self) -> None:
        """Ask for a checkpoint, some steps later, beside those of the recipe."""
        self._save.set()


@runtime_checkable
class Callback(Protocol):
    """What `train(callbacks=[...])` takes."""

    def on_epoch_end(self, state: EpochState) -> None:
        """Called after each epoch of the run; the training goes on meanwhile."""


class CallbackThread:
    """Calls the callbacks one after the other, in a thread: a slow one holds up neither training nor display.

    The first exception of a callback asks for a checkpoint and the end of the run; no callback follows it.

    Args:
        callbacks: all that are called after each epoch.
        stop: set to ask for the end of the run.
        save: set to ask for a checkpoint.
    """

    def __init__(self, callbacks: Sequence[Callback], stop: threading.Event, save: threading.Event) -> None:
        self.callbacks, self.stop, self.save = callbacks, stop, save
        self.queue = SimpleQueue[EpochState | None]()
        self.epochs = 0
        self.error: UserError | None = None
        self.thread = threading.Thread(target=self._work, name="kdcl-callbacks", daemon=True)
        if callbacks:
            self.thread.start()

    def handle(self, event: Event) -> None:
        """Let the callbacks know of the end of an epoch."""
        if isinstance(event, Started):
            self.epochs = event.epochs
        elif isinstance(event, EpochEnded):
            values = event.train, event.test, event.val
            self.queue.put(EpochState(event.epoch + 1, self.epochs, *values, self.stop, self.save))

    def close(self) -> UserError | None:
        """Wait for the callbacks, at most `LIMIT_S`; one that takes longer is left alone.

        Returns:
            The error of a callback that has raised, or has not returned; None without such.
        """
        if self.callbacks:
            self.queue.put(None)
            self.thread.join(LIMIT_S)
        if self.thread.is_alive():
            self.error = UserError(f"a callback has not returned within {LIMIT_S:g} s of the run's end")
        return self.error

    def _work(self) -> None:
        # Without a limit: this daemon thread ends with the queue, which `close` ends.
        while (state := self.queue.get()) is not None:
            for callback in self.callbacks:
                if self.error is None:
                    self._call(callback, state)

    def _call(self, callback: Callback, state: EpochState) -> None:
        try:
            callback.on_epoch_end(state)
        except BaseException as error:  # a user's code may raise SystemExit as well
            name, text = type(callback).__name__, "".join(traceback.format_exception(error))
            message = f"callback {name} failed after epoch {state.epoch}: {one_line(error)}"
            self.error = UserError(message, detail=text)
            self.stop.set()
