"""The events of a run as lines for a log: each with its time, its kind and figures as `key=value`.

2026-11-30T04:14:30+00:00 step epoch=7/20 step=212/640 steps_per_s=7.1 left=0:01:00 small.train.loss=0.51
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from types import TracebackType

from kdcl_dist.run.events import (
    CheckpointSaved,
    Ended,
    EpochEnded,
    Evaluating,
    Event,
    Note,
    Started,
    Stepped,
    Values,
    Waiting,
    Warned,
)
from kdcl_dist.utils.text import shown

__all__ = ["PERIOD_S", "RunLines", "placement_text", "stamped"]

#: Seconds from one line about the progress to the next, and between two looks whether one is due.
PERIOD_S, POLL_S = 25.0, 1.0
#: The figures of lines about steps and epochs.
STEP_FIGURES, TEST_FIGURES = ("loss", "lr"), ("loss", "top1")


class RunLines:
    """A context manager that writes lines about a run: of its events, and at least every `PERIOD_S` seconds.

    Args:
        write: takes each line, also from a thread.
        clock: seconds since the epoch of Unix.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
        self._write, self._clock = write, clock
        self._began = self._moved_at = self._line_at = clock()
        self._started: Started | None = None
        self._latest: Stepped | Evaluating | None = None
        self._waiting: Waiting | None = None
        self._step = self._line_step = 0
        self._state = "unknown"
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kdcl-lines", daemon=True)

    def __enter__(self) -> RunLines:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(POLL_S)  # longer only where a line cannot be written
        state, why = self._state, list[tuple[str, object]]()
        if error is not None and self._started is None:
            return  # the command's own line says it all
        if error is not None:
            state = "failed" if isinstance(error, Exception) else "interrupted"
            why = [("error", repr(shown(str(error) or type(error).__name__)))]
        seconds = f"{self._clock() - self._began:.0f}"
        with self._lock:
            self._line("end", [("state", state), ("step", self._step), ("seconds", seconds), *why])

    def handle(self, event: Event) -> None:
        """Write what an event says, if it is worth a line at once."""
        with self._lock:
            if isinstance(event, Waiting):
                self._waiting = event
            else:
                self._waiting, self._moved_at = None, self._clock()
                self._tell(event)
            self.tick()

    def tick(self) -> None:
        """Write a line about the progress if one is due."""
        with self._lock:
            if self._clock() - self._line_at >= PERIOD_S:
                moved = self._moved_at > self._line_at
                self._progress() if moved and self._waiting is None else self._wait()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self.tick()

    def _tell(self, event: Event) -> None:
        match event:
            case Note(text):
                self._write(stamped(text, self._clock()))
            case Warned(text):
                self._write(stamped(f"warning: {text}", self._clock()))
            case Started():
                self._start(event)
            case Stepped() | Evaluating():
                self._latest, self._step = event, event.step
            case EpochEnded():
                self._end_epoch(event)
            case CheckpointSaved(step):
                self._step = step
            case Ended(finished):
                self._state = "finished" if finished else "stopped"

    def _start(self, event: Started) -> None:
        self._started, self._latest, self._step = event, None, event.step
        for name, where in event.placement.items():
            self._write(stamped(placement_text(name, where), self._clock()))
        self._line("start", [*self._place(event.step), ("students", ",".join(event.students))])

    def _end_epoch(self, event: EpochEnded) -> None:
        assert self._started is not None
        self._step = (event.epoch + 1) * self._started.steps_per_epoch
        figures = [("epoch", f"{event.epoch + 1}/{self._started.epochs}"), self._steps(self._step)]
        is_tested = bool(event.val or event.test)
        figures += _figures("train", event.train, TEST_FIGURES[: 1 if is_tested else None])
        figures += _figures("val", event.val, TEST_FIGURES) + _figures("test", event.test, TEST_FIGURES)
        self._line("epoch", figures)

    # -- without an event ------------------------------------------------------------------------

    def _progress(self) -> None:
        """A line on the latest step or test; before the first one, on what the run waits for."""
        match self._latest:
            case Stepped(step, values):
                figures = [*self._place(step), *self._speed(step), *_figures("train", values, STEP_FIGURES)]
                self._line("step", figures)
            case Evaluating(step, batch, batches):
                self._line("test", [*self._place(step), ("batch", f"{batch}/{batches}")])
            case None:
                self._wait()

    def _wait(self) -> None:
        """A line on what the run waits for, as far as that is known."""
        now, waiting = self._clock(), self._waiting
        since = self._moved_at if waiting is None else min(self._moved_at, now - waiting.seconds)
        phase = "start" if self._started is None else None
        figures: list[tuple[str, object]] = [("since", _time(since)), ("seconds", f"{now - since:.0f}")]
        if waiting is not None:
            phase, step = waiting.phase, waiting.step
        else:
            step = self._step
        figures += [("phase", phase)] if phase else []
        figures += [] if self._started is None else self._place(step)
        late = ",".join(waiting.late) if waiting else ""
        self._line("wait", [*figures, ("for", late or "unknown")])

    def _place(self, step: int) -> list[tuple[str, object]]:
        """The epoch in which a step is, and the step."""
        assert self._started is not None
        epoch = max(0, step - 1) // self._started.steps_per_epoch + 1
        return [("epoch", f"{epoch}/{self._started.epochs}"), self._steps(step)]

    def _steps(self, step: int) -> tuple[str, object]:
        assert self._started is not None
        return "step", f"{step}/{self._started.epochs * self._started.steps_per_epoch}"

    def _speed(self, step: int) -> list[tuple[str, object]]:
        """Steps a second since the last line, tests included, and the time that is left at that speed."""
        assert self._started is not None
        rate = (step - self._line_step) / max(self._clock() - self._line_at, 1e-9)
        left = self._started.epochs * self._started.steps_per_epoch - step
        remaining = timedelta(seconds=round(left / rate)) if rate > 0 else "unknown"
        return [("steps_per_s", f"{rate:.3g}"), ("left", str(remaining).replace(" ", ""))]

    def _line(self, kind: str, figures: Iterable[tuple[str, object]]) -> None:
        self._line_at, self._line_step = self._clock(), self._step
        pairs = " ".join(f"{name}={value}" for name, value in figures)
        self._write(f"{_time(self._line_at)} {kind} {pairs}")


def placement_text(name: str, where: dict[str, str | int]) -> str:
    """Where a worker trains: a line for a terminal or a log."""
    place = f"{where['device']} of {where['host']}, process {where['pid']}"
    peak = int(where.get("peak_memory", 0))
    memory = f", up to {peak / 1e6:,.0f} MB of memory" if peak else ""
    return f"{name}: {where['parameters']:,} parameters, {place}{memory}"


def stamped(text: str, now: float) -> str:
    """Any text as one line that begins with its time, in seconds since the epoch of Unix."""
    return f"{_time(now)} {shown(text)}"


def _time(now: float) -> str:
    return datetime.fromtimestamp(now).astimezone().isoformat(timespec="seconds")


def _figures(split: str, values: Values, names: Iterable[str]) -> list[tuple[str, object]]:
    """`STUDENT.SPLIT.NAME`, as the metrics have them, of each student that has such a value."""
    return [
        (f"{student}.{split}.{name}", f"{own[name]:.4g}")
        for student, own in values.items()
        for name in names
        if name in own
    ]
