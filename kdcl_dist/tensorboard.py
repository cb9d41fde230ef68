"""The recorded rows once more, for TensorBoard: one folder a student, so that their curves overlay."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from kdcl_dist.storage import Folder

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes event files into `tensorboard/` of a run.

    On a local disk they grow while the run goes on. Elsewhere files do not grow: each epoch is written
    into files of its own in a temporary folder, which `flush` takes to the storage.

    Args:
        run: the run folder.
        start: steps done before the first epoch that is written now. Points after it, which a run that is
            resumed has left, are shown no more.
    """

    def __init__(self, run: Folder, start: int) -> None:
        self.run, self.start = run, start
        self.staging = None if run.local else TemporaryDirectory(prefix="kdcl-tensorboard-")
        self.folder = Path(self.staging.name if self.staging else f"{run.local}/tensorboard")
        self.writers: dict[str, Any] = {}
        self.epochs = 0

    def write(self, rows: pa.Table) -> None:
        """Write the rows of an epoch as scalars `split/name` over the global step."""
        for row in rows.to_pylist():
            writer = self._writer(row["student"])
            # Every point stands at the number of steps done by then, so that a resumed run, which deletes
            # all points after its start, deletes nothing that it does not write again.
            steps = row["step"] + (row["split"] in ("train", "analysis"))
            writer.add_scalar(f"{row['split']}/{row['name']}", row["value"], steps)
        for writer in self.writers.values():
            writer.flush()
        self.epochs += 1
        if self.staging is not None:
            self._close_writers()

    def flush(self, limit_s: float) -> None:
        """Take what is finished to the storage; arguments and errors as `Recorder.flush`."""
        for file in sorted(self.folder.rglob("*tfevents*")) if self.staging else ():
            name = f"tensorboard/{file.relative_to(self.folder)}"
            self.run.within(limit_s).write(name, file.read_bytes())
            file.unlink()

    def close(self) -> None:
        """Close all files."""
        self._close_writers()
        if self.staging is not None:
            self.staging.cleanup()

    def _close_writers(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers = {}

    def _writer(self, student: str) -> Any:
        if student not in self.writers:
            from tensorboardX import SummaryWriter  # half a second that only this process needs

            self.writers[student] = SummaryWriter(
                str(self.folder / student),
                purge_step=self.start + 1 if self.start and not self.epochs else None,
                filename_suffix=f".{self.epochs}",
            )
        return self.writers[student]
