"""The files for TensorBoard, read by TensorBoard's own code."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from kdcl_dist.errors import StorageError
from kdcl_dist.run.storage import Folder
from kdcl_dist.tracking.tensorboard import TensorBoard


def rows(*steps: int, value: float) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"student": name, "step": step, "split": split, "name": "loss", "value": value}
            for name in ("a", "b")
            for split in ("train", "test")
            for step in steps
        ]
    )


def write(board: TensorBoard, rows: pa.Table) -> None:
    board.add(rows)
    board.flush(0.0)


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_points_stand_at_the_steps_done_and_a_resumed_run_replaces_those_after_its_start(
    tmp_path: Path,
) -> None:
    monitor, threads = TensorBoard(Folder(str(tmp_path)), start=0), threading.active_count()
    write(monitor, rows(0, 1, 2, value=1.0))
    write(monitor, rows(3, 4, value=1.0))  # of an epoch that another process takes again
    assert threading.active_count() == threads
    # What is written is there before the file is closed: a process that is killed closes none.
    assert shown(tmp_path / "tensorboard" / "a")["train/loss"] == [(step, 1.0) for step in range(1, 6)]
    time.sleep(1.1)  # files are named by the second
    again = TensorBoard(Folder(str(tmp_path)), start=3)
    write(again, rows(3, 4, 5, value=2.0))
    again.close()
    for name in ("a", "b"):
        found = shown(tmp_path / "tensorboard" / name)
        assert found["train/loss"] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
        assert found["test/loss"] == [(0, 1), (1, 1), (2, 1), (3, 1), (3, 2), (4, 2), (5, 2)]
    monitor.close()


def test_a_full_disk_is_told_and_closing_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monitor = TensorBoard(Folder(str(tmp_path)), start=0)
    write(monitor, rows(0, value=1.0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"tensorboard cannot be written: .*No space left"):
            write(monitor, rows(1, value=1.0))
    time.sleep(1.1)  # files are named by the second
    write(monitor, rows(2, value=1.0))
    found = shown(tmp_path / "tensorboard" / "a")["train/loss"]
    assert {step for step, _ in found} == {1, 2, 3}, "the refused epoch was written with the next"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        monitor.add(rows(3, value=1.0))
        with pytest.raises(StorageError):
            monitor.flush(0.0)
    monitor.close()
