"""A limit for a whole exchange on a connection; the time limit of a socket begins anew with each byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

__all__ = ["cut_off"]


@contextlib.contextmanager
def cut_off(connection: socket.socket, after_s: float) -> Iterator[None]:
    """Shut a connection down, so that whoever reads from it finds its end, if the block takes too long.

    Args:
        connection: that is open.
        after_s: seconds.

    Raises:
        TimeoutError: the block took too long and raised nothing.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):  # it is closed already
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(after_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # no thread is left where the interpreter ends
    if late.is_set():
        raise TimeoutError(f"not complete within {after_s:.1f} s")
