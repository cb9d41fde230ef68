"""The recorded metrics for TensorBoard: one folder for each student, so that their curves overlay."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from kdcl_dist.errors import StorageError, one_line
from kdcl_dist.run.storage import Folder

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes event files into `tensorboard/` of a run.

    On a local disk the files grow during the run. On other storage a file cannot grow: each epoch gets files
    of its own in a temporary folder, which `flush` copies to the storage.

    Args:
        run: the run folder.
        start: steps done before this start of the run. TensorBoard then hides the points of an earlier start
            after this step.
    """

    def __init__(self, run: Folder, start: int) -> None:
        self.run, self.start = run, start
        self.staging = None if run.local else TemporaryDirectory(prefix="kdcl-tensorboard-")
        self.folder = Path(self.staging.name if self.staging else f"{run.local}/tensorboard")
        self.writers: dict[str, Any] = {}
        self.unwritten: list[pa.Table] = []
        self.epochs = 0

    def add(self, rows: pa.Table) -> None:
        """Take the rows of an epoch, which `flush` writes as scalars `split/name` over the global step."""
        self.unwritten.append(rows)

    def _write(self, rows: pa.Table) -> None:
        from tensorboardX.proto.event_pb2 import Event  # takes half a second, so not at the top
        from tensorboardX.summary import scalar

        now = time.time()
        for row in rows.to_pylist():
            writer = self._writer(row["student"])
            # The step of a point is the number of steps done at that time. A resumed run hides all points
            # after its start, and so hides only points that it writes again.
            steps = row["step"] + (row["split"] in ("train", "analysis"))
            point = scalar(f"{row['split']}/{row['name']}", row["value"])
            writer.write_event(Event(wall_time=now, step=steps, summary=point))
        for writer in self.writers.values():
            writer.flush()
        self.epochs += 1
        if self.staging is not None:
            self._close_writers()

    def flush(self, limit_s: float) -> None:
        """Write the epochs, and copy finished files to the storage; as `MetricsTable.flush`."""
        try:
            while self.unwritten:
                self._write(self.unwritten[0])
                del self.unwritten[0]
        except OSError as error:
            with contextlib.suppress(OSError):  # the next try begins new files: a broken one may stay broken
                self._close_writers()
            raise StorageError(f"{self.folder} cannot be written: {one_line(error)}") from error
        for file in sorted(self.folder.rglob("*tfevents*")) if self.staging else ():
            name = f"tensorboard/{file.relative_to(self.folder)}"
            self.run.with_limit(limit_s).write(name, file.read_bytes())
            file.unlink()

    def close(self) -> None:
        """Close all files. On a full disk the last points are lost: what ends the run tells of the disk."""
        with contextlib.suppress(OSError):
            self._close_writers()
        if self.staging is not None:
            self.staging.cleanup()

    def _close_writers(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers = {}

    def _writer(self, student: str) -> Any:
        """The event file of a student.

        The file is written without tensorboardX's `SummaryWriter`: that has two threads and a queue between
        processes, whose semaphores outlive a killed process.
        """
        if student not in self.writers:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

            (self.folder / student).mkdir(parents=True, exist_ok=True)
            writer = EventsWriter(str(self.folder / student / "events"), f".{self.epochs}")
            if self.start and not self.epochs:  # hides the earlier points from here on
                log = SessionLog(status=SessionLog.START)
                writer.write_event(Event(wall_time=time.time(), step=self.start + 1, session_log=log))
            self.writers[student] = writer
        return self.writers[student]
