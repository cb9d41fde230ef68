"""What a tracker gets, and that nothing which it does reaches the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trackers

from kdcl_dist.errors import StorageError
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.metrics import MetricsTable
from kdcl_dist.run.storage import Folder
from kdcl_dist.tracking import channel
from kdcl_dist.tracking.channel import Channel
from kdcl_dist.tracking.tracker import TrackedRun

SECRET = "sK-12345678-abcdef"


@dataclass
class Line:
    """A run folder whose epochs go to a tracker."""

    folder: Folder
    tracker: trackers.Notes = field(default_factory=trackers.Notes)
    events: list[Event] = field(default_factory=list)
    every_steps: int = 1
    buffers: bool = False

    def __post_init__(self) -> None:
        run = TrackedRun("r", "group", None, self.folder, "epochs: 3\n", {"epochs": 3})
        self.channel = Channel(
            "my:T", lambda: self.tracker, run, self.every_steps, self.events.append, self.buffers
        )

    def record(self, epoch: int, value: float = 1.0) -> None:
        """Record an epoch, from 0 on, of two steps."""
        table = MetricsTable(self.folder)
        for step in (2 * epoch, 2 * epoch + 1):
            table.add("a", epoch, step, "train", {"loss": value + step})
        table.add("ensemble", epoch, 2 * epoch + 2, "test", {"top1": value})
        table.end_epoch(epoch)
        table.flush(1)
        self.channel.recorded_until(epoch + 1)

    def await_calls(self, count: int) -> None:
        """Wait until the tracker was called so often."""
        deadline = time.monotonic() + 60
        while len(self.tracker.calls) < count or self.channel.busy_since is not None:
            assert time.monotonic() < deadline, self.tracker.calls
            time.sleep(0.01)

    def await_errors(self, left: list[BaseException], most: int) -> None:
        """Wait until at most so many errors are left that the tracker is to raise."""
        deadline = time.monotonic() + 60
        while len(left) > max(0, most) or self.channel.busy_since is not None:
            assert time.monotonic() < deadline, self.tracker.calls
            time.sleep(0.01)

    def end(self, status: str | None = "finished") -> None:
        """End the run."""
        self.channel.close(status)  # type: ignore[arg-type]
        self.channel.join(60)
        assert not self.channel.thread.is_alive()

    def warnings(self) -> list[str]:
        """The texts of all warnings."""
        return [event.text for event in self.events if isinstance(event, Warned)]


@pytest.fixture
def open_line(tmp_path: Path) -> Iterator[Callable[..., Line]]:
    lines: list[Line] = []

    def make(**fields: object) -> Line:
        lines.append(Line(Folder(str(tmp_path / "r")), **fields))  # type: ignore[arg-type]
        return lines[-1]

    yield make
    trackers.RELEASED.set()
    for line in lines:
        line.channel.close(None)
        line.channel.thread.join(60)
    trackers.RELEASED.clear()


def test_each_epoch_comes_once_with_the_steps_done(open_line: Callable[..., Line]) -> None:
    line, before = open_line(), time.time()
    line.record(0)
    line.record(1)
    line.end()
    assert line.tracker.calls == ["start", "log 1", "log 2", "finished"]
    assert [point[:6] for point in line.tracker.points] == [
        ("a", 1, 1, "train", "loss", 1.0),
        ("a", 1, 2, "train", "loss", 2.0),
        ("ensemble", 1, 2, "test", "top1", 1.0),
        ("a", 2, 3, "train", "loss", 3.0),
        ("a", 2, 4, "train", "loss", 4.0),
        ("ensemble", 2, 4, "test", "top1", 1.0),
    ]
    assert all(before - 5 <= point.time <= time.time() + 5 for point in line.tracker.points)
    assert line.events == []


def test_a_rollback_and_a_resumed_run_repeat_nothing(open_line: Callable[..., Line]) -> None:
    line = open_line()
    line.record(0)
    line.record(1)
    line.await_calls(3)
    line.record(0, value=9.0)  # all went back
    line.record(1, value=9.0)
    line.end("interrupted")
    again = open_line()
    again.record(1, value=9.0)
    again.record(2)
    again.end()
    assert line.tracker.calls == ["start", "log 1", "log 2", "interrupted"]
    assert again.tracker.calls == ["start", "log 3", "finished"]
    assert [run.id for run in (*line.tracker.runs, *again.tracker.runs)] == [None, "its own id"]
    assert max(point.value for point in line.tracker.points) < 9


def test_what_a_tracker_buffers_comes_again_after_its_process_died(open_line: Callable[..., Line]) -> None:
    line = open_line(buffers=True)
    line.record(0)
    line.await_calls(2)
    line.end(None)  # as if the process was killed
    again = open_line(buffers=True)
    again.record(1)
    again.end("interrupted")
    last = open_line(buffers=True)
    last.record(2)
    last.end()
    assert again.tracker.calls == ["start", "log 1", "log 2", "interrupted"]
    assert last.tracker.calls == ["start", "log 3", "finished"]


def test_a_tracker_that_comes_late_gets_all(open_line: Callable[..., Line]) -> None:
    line = open_line()
    line.record(0)
    line.end(None)  # as if the process ended: the tracker is not told
    (line.folder.local / "tracking" / "my.T.json").unlink()  # type: ignore[operator]
    late = open_line(every_steps=2)
    late.end("failed")
    assert late.tracker.calls == ["start", "log 1", "failed"]
    assert [point[2:4] for point in late.tracker.points] == [(2, "train"), (2, "test")]


@pytest.mark.parametrize("at", ["start", "log 1", "log 2"])
@pytest.mark.parametrize("error", [ConnectionError(f"key {SECRET} at http://u:p@h"), SystemExit(SECRET)])
def test_a_server_that_was_away_gets_all_later(
    at: str, error: BaseException, open_line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    tracker = trackers.Notes()
    calls = tracker.calls
    meet, left = tracker._meet, [error] * 2

    def fail_there() -> None:
        if calls[-1] == at and left:
            raise left.pop()
        meet()

    tracker._meet = fail_there  # type: ignore[method-assign]
    line = open_line(tracker=tracker)
    for epoch in range(4):
        line.record(epoch)
        line.await_errors(left, 2 - epoch)
    line.record(4)
    line.end()
    assert [point.step for point in tracker.points if point.split == "test"] == [2, 4, 6, 8, 10]
    assert calls[-1] == "finished"
    (text,) = line.warnings()
    assert text.startswith(f"tracking: my:T fails ({type(error).__name__}: ")
    assert SECRET not in text
    assert "u:p" not in text
    assert line.events == [Warned(text)]


def test_a_tracker_that_always_fails_is_told_of_once(open_line: Callable[..., Line]) -> None:
    line = open_line(tracker=trackers.Fails())
    for epoch in range(3):
        line.record(epoch)
    line.end()
    (text,) = line.warnings()
    assert "ConnectionError: http://***@server is away" in text
    assert line.events[1:] == [Note("tracking: my:T has 0 of 3 recorded epochs")]


def test_a_tracker_that_hangs_is_left_behind(open_line: Callable[..., Line]) -> None:
    line = open_line(tracker=trackers.Hangs())
    line.record(0)
    line.channel.close("finished")
    line.channel.join(0.1)
    assert line.channel.thread.is_alive()
    assert [type(event) for event in line.events] == [Warned, Note]
    assert "has not ended in time" in line.warnings()[0]


def test_a_slow_tracker_is_told_of_while_the_run_goes_on(
    open_line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "SLOW_S", 0.0)
    line = open_line(tracker=trackers.Hangs())
    line.record(0)
    deadline = time.monotonic() + 60
    while not line.warnings():
        assert time.monotonic() < deadline
        line.record(1)
    assert "has not answered for" in line.warnings()[0]
    line.record(2)
    assert len(line.warnings()) == 1


@pytest.mark.parametrize("note", [b"", b"[1]", b'{"id": 5, "epochs": "x"}', b"[" * 9000, b" " * 20_000])
def test_a_damaged_note_begins_anew(note: bytes, open_line: Callable[..., Line], tmp_path: Path) -> None:
    Folder(str(tmp_path / "r")).write("tracking/my.T.json", note)
    line = open_line()
    line.record(0)
    line.end()
    assert line.tracker.calls == ["start", "log 1", "finished"]
    assert line.tracker.runs[0].id is None
    assert line.events == []


def test_a_storage_that_fails_is_trouble_of_the_tracker_only(
    open_line: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = open_line()
    line.await_calls(1)
    monkeypatch.setattr(Folder, "time", lambda self, name: (_ for _ in ()).throw(StorageError("it is away")))
    line.record(0)
    line.end()
    assert "fails (StorageError: it is away)" in line.warnings()[0]
    assert line.tracker.calls == ["start", "finished"]


def test_a_function_that_makes_no_tracker(open_line: Callable[..., Line], tmp_path: Path) -> None:
    events: list[Event] = []
    run = TrackedRun("r", "group", None, Folder(str(tmp_path / "r")), "", {})
    found = Channel("my:f", trackers.raises_when_made, run, 1, events.append)
    found.close("finished")
    found.join(60)
    assert [str(event).count("OSError: no such channel") for event in events] == [1]
