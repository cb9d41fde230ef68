"""Standard output of long commands: where the pipe breaks, the command goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console

__all__ = ["lasting_console"]


def lasting_console(*, stderr: bool = False) -> Console:
    """A console on standard output or error that drops what is written once the stream is broken.

    The reader of a pipe may go (`| head`), a session may be closed, or a disk be full. None of it ends a run.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=None if stream is None else cast(TextIO, _Lasting(stream)), stderr=stderr)


class _Lasting:
    """A stream whose descriptor leads nowhere after its first failure."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write, or drop the text."""
        self._guarded(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Flush, or drop what waits."""
        self._guarded(self._stream.flush)

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError:
            with Path(os.devnull).open("wb") as nowhere:  # the stream itself tries its rest again at the exit
                os.dup2(nowhere.fileno(), self._stream.fileno())
