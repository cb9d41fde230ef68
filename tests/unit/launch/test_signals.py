"""Ctrl-C and SIGTERM as requests to stop."""

from __future__ import annotations

import signal
import threading

import pytest

from kdcl_dist.launch.signals import stop_on_signals

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_asks_for_a_stop_and_a_second_ctrl_c_interrupts(number: signal.Signals) -> None:
    before, lines, told = [signal.getsignal(each) for each in NUMBERS], list[str](), threading.Event()

    def notify(line: str) -> None:
        lines.append(line)
        told.set()

    with stop_on_signals(notify) as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert told.wait(60)
        assert stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(lines) == 1
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_one_that_comes_in_the_midst_of_a_write_does_not_wait_for_that_write() -> None:
    writing, told = threading.Lock(), threading.Event()

    def notify(line: str) -> None:
        with writing:
            told.set()

    with stop_on_signals(notify) as stop:
        with writing:
            signal.raise_signal(signal.SIGTERM)
            assert stop.wait(60), "the run knows, though the terminal is held"
            assert not told.is_set()
        assert told.wait(60)


def test_the_thread_ends_with_the_block() -> None:
    with stop_on_signals(lambda line: None):
        (thread,) = (each for each in threading.enumerate() if each.name == "kdcl-signals")
    thread.join(60)
    assert not thread.is_alive()
