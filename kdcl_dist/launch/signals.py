"""Ctrl-C and SIGTERM as a request to stop the run at the next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType

__all__ = ["stop_on_signals"]

STOPPING = "stopping after this step, with a checkpoint; Ctrl-C again to give up the steps since the last"


@contextmanager
def stop_on_signals(notify: Callable[[str], None]) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second SIGINT raises KeyboardInterrupt.

    Only the main thread can receive signals; in any other thread the event is never set.

    Args:
        notify: called with a line when the event is set.
    """
    stop_requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return

    asked, news = list[int](), SimpleQueue[bool]()

    def handle(number: int, _frame: FrameType | None) -> None:
        """Request a stop; a second Ctrl-C interrupts.

        It may run in the midst of a write to the terminal, or of itself, which hold locks: so a thread tells.
        """
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        news.put(True)

    def tell() -> None:
        """Tell of the first request; the end of the block ends this thread."""
        if news.get():
            stop_requested.set()
            notify(STOPPING)

    threading.Thread(target=tell, name="kdcl-signals", daemon=True).start()
    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_requested
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        news.put(False)
