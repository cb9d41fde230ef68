"""One tracker, fed from a thread: whatever it does, the run waits for it at its end only, and not for long.

The run folder is the queue: the thread passes on the recorded epochs that the tracker does not have yet. So
nothing is kept in memory, and a tracker whose server was away catches up, also after the run was resumed.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kdcl_dist.errors import StorageError, one_line
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.metrics import read_epoch, recorded_epochs
from kdcl_dist.run.storage import Folder
from kdcl_dist.tracking.secrets import without_environment
from kdcl_dist.tracking.tracker import Status, TrackedRun, Tracker, points_of

__all__ = ["NOTES", "Channel", "has_epochs"]

#: The folder within the run folder that has a note on each tracker.
NOTES = "tracking"
#: Seconds of one call after which a tracker counts as slow.
SLOW_S = 60.0
#: Seconds for which the storage is tried again; the next epoch is the next try.
STORAGE_S = 3.0
#: Bytes of the largest note.
NOTE_BYTES = 10_000


class Channel:
    """Passes each epoch to a tracker once, in order, also over failures and resumptions of the run.

    An epoch whose call raises is tried again after the next one, and at the end. A note in the run folder
    says how many epochs the tracker has, and its own id of the run.

    Args:
        name: of the tracker.
        make: makes the tracker; called in the thread, as the tracker is.
        run: what the tracker is told.
        every_steps: steps from one point of the training to the next.
        emit: takes events from any thread.
        buffers: whether points are lost that it has, if this process is killed; then the note counts an epoch
            only once the tracker has finished, and another process passes it on again.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Tracker],
        run: TrackedRun,
        every_steps: int,
        emit: Callable[[Event], None],
        buffers: bool = False,
    ) -> None:
        self.name, self.make, self.run, self.every_steps, self.emit = name, make, run, every_steps, emit
        self.folder = run.folder.with_limit(STORAGE_S)
        self.tracker: Tracker | None = None
        self.buffers, self.started, self.warned, self.closing = buffers, False, False, False
        self.status: Status | None = None
        self.passed = self.recorded = 0
        self.busy_since: float | None = None
        self.news = threading.Event()
        self.thread = threading.Thread(target=self._work, name=f"kdcl-tracker-{name}", daemon=True)
        self.thread.start()

    def recorded_until(self, epochs: int) -> None:
        """Say that so many epochs are recorded; does not wait."""
        self.recorded = epochs
        self.news.set()
        if (since := self.busy_since) is not None and (busy_s := time.monotonic() - since) > SLOW_S:
            self._warn(f"has not answered for {busy_s:.0f} s; training goes on")

    def close(self, status: Status | None) -> None:
        """Begin to end, without a wait; None: another process goes on with the run."""
        self.status, self.closing = status, True
        self.news.set()

    def join(self, limit_s: float) -> None:
        """Wait for the end, at most so many seconds, and say what the tracker lacks."""
        self.thread.join(limit_s)
        if self.thread.is_alive():
            self._warn("has not ended in time, and is left behind")
        if self.status is not None and self.passed < self.recorded:
            self.emit(Note(f"tracking: {self.name} has {self.passed} of {self.recorded} recorded epochs"))

    def _work(self) -> None:
        """Deliver until the end. Its wait has no limit: this daemon thread ends with the process."""
        while True:
            closing, status = self.closing, self.status  # before the delivery: it may close meanwhile
            if not closing or status is not None:
                self._try(self._deliver)
            if closing:
                break
            self.news.wait()
            self.news.clear()
        if status is not None and self.started:
            self._try(partial(self._finish, status))

    @property
    def _tracker(self) -> Tracker:
        """The tracker, made once."""
        if self.tracker is None:
            self.tracker = self.make()
        return self.tracker

    def _try(self, call: Callable[[], None]) -> None:
        self.busy_since = time.monotonic()
        try:
            call()
        except (Exception, SystemExit) as error:  # of a library, or of a user's code
            self._warn(f"fails ({one_line(error)}); training goes on, and each epoch's end tries it again")
        self.busy_since = None

    def _warn(self, what: str) -> None:
        """Warn once of all that goes wrong with the tracker."""
        if not self.warned:
            self.warned = True
            self.emit(Warned(without_environment(f"tracking: {self.name} {what}")))

    def _deliver(self) -> None:
        """Pass on the epochs that the tracker does not have."""
        if not self.started:
            self._start()
        for epoch in recorded_epochs(self.folder):
            if epoch >= self.passed:
                time_s = self.folder.time(f"metrics/epoch-{epoch:04d}.parquet")
                self._tracker.log(points_of(read_epoch(self.folder, epoch), time_s, self.every_steps))
                self.passed = epoch + 1
                if not self.buffers:
                    self._write_note()
                self.busy_since = time.monotonic()

    def _start(self) -> None:
        note = _read_note(self.folder, self.name)
        id = note.get("id")
        self.id = self._tracker.start(replace(self.run, id=id if isinstance(id, str) else None))
        self.passed, self.started = _epochs_in(note), True
        self._write_note()

    def _finish(self, status: Status) -> None:
        self._tracker.finish(status)
        self._write_note()

    def _write_note(self) -> None:
        note = {"id": self.id, "epochs": self.passed}
        with contextlib.suppress(StorageError):  # then a resumed run may pass on an epoch twice
            self.folder.write(_file_of(self.name), json.dumps(note).encode())


def has_epochs(folder: Folder, name: str) -> int:
    """How many epochs of a run a tracker has, as its note says."""
    return _epochs_in(_read_note(folder, name))


def _read_note(folder: Folder, name: str) -> dict[str, object]:
    """The note of an earlier start; empty if there is none that can be read."""
    try:
        note = json.loads(folder.read(_file_of(name), NOTE_BYTES))
        return note if isinstance(note, dict) else {}
    except (FileNotFoundError, ValueError, RecursionError):
        return {}


def _epochs_in(note: dict[str, object]) -> int:
    epochs = note.get("epochs")
    return epochs if isinstance(epochs, int) else 0


def _file_of(name: str) -> str:
    return f"{NOTES}/{name.replace(':', '.')}.json"
