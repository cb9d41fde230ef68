"""Callbacks in a thread of the caller's process."""

from __future__ import annotations

import threading

import pytest

from kdcl_dist.api import callbacks
from kdcl_dist.api.callbacks import CallbackThread, EpochState
from kdcl_dist.run.events import EpochEnded, Started

STARTED = Started(["a"], {}, 3, 10, 0)


def ended(epoch: int) -> EpochEnded:
    return EpochEnded(epoch, {"a": {"loss": 1.0}}, {"a": {"top1": 0.5}}, {})


class Records:
    """Remembers the states."""

    def __init__(self) -> None:
        self.states: list[EpochState] = []

    def on_epoch_end(self, state: EpochState) -> None:
        """Remember, stop after the second, save after the first."""
        self.states.append(state)
        if state.epoch == 2:
            state.stop()
        else:
            state.save()


class Fails:
    """Raises."""

    def on_epoch_end(self, state: EpochState) -> None:
        """Raise what no handler of Exception catches."""
        raise SystemExit(f"in epoch {state.epoch}")


class Hangs:
    """Waits."""

    def __init__(self) -> None:
        self.go_on, self.begun = threading.Event(), threading.Event()

    def on_epoch_end(self, state: EpochState) -> None:
        """Wait for the test's end."""
        self.begun.set()
        self.go_on.wait(60)


def test_a_callback_learns_of_each_epoch_and_may_ask() -> None:
    stop, save, record = threading.Event(), threading.Event(), Records()
    thread = CallbackThread([record], stop, save)
    for event in (STARTED, ended(0)):
        thread.handle(event)
    assert save.wait(60)
    assert not stop.is_set()
    thread.handle(ended(1))
    assert thread.close() is None
    assert stop.is_set()
    assert [(state.epoch, state.epochs) for state in record.states] == [(1, 3), (2, 3)]
    assert record.states[0].train == {"a": {"loss": 1.0}}
    assert record.states[0].test == {"a": {"top1": 0.5}}


def test_the_first_exception_stops_the_run_and_the_callbacks() -> None:
    stop, after = threading.Event(), Records()
    thread = CallbackThread([Fails(), after], stop, threading.Event())
    for event in (STARTED, ended(0), ended(1)):
        thread.handle(event)
    error = thread.close()
    assert str(error) == "callback Fails failed after epoch 1: SystemExit: in epoch 1"
    assert error is not None
    assert "on_epoch_end" in (error.detail or "")
    assert stop.is_set()
    assert not after.states


def test_a_callback_that_hangs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "LIMIT_S", 0.05)
    hangs = Hangs()
    thread = CallbackThread([hangs], threading.Event(), threading.Event())
    thread.handle(ended(0))  # returns at once
    assert hangs.begun.wait(60)
    assert "has not returned within 0.05 s" in str(thread.close())
    hangs.go_on.set()
    thread.thread.join(60)


def test_without_callbacks_there_is_no_thread() -> None:
    thread = CallbackThread([], threading.Event(), threading.Event())
    thread.handle(STARTED)
    assert not thread.thread.is_alive()
    assert thread.close() is None
