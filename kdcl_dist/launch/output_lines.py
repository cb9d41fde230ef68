"""What a process writes, as whole lines that are safe to show."""

from __future__ import annotations

from kdcl_dist.utils.text import shown

__all__ = ["Lines"]

#: Bytes, and then characters, of the longest line.
LONGEST = 1 << 16


class Lines:
    """Makes lines of what a process writes in pieces.

    Tabs stay; other control characters, and bytes that are no UTF-8, are escaped as in Python: a terminal
    would act on them. Of a line that a progress bar overwrites the last state counts.
    """

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> list[str]:
        """The lines that the next piece ends; what follows them waits, unless it is longer than `LONGEST`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            lines, self._rest = [*lines, self._rest], b""
        return [_shown(line) for line in lines]

    def end(self) -> list[str]:
        """What waits, as a line, if anything does."""
        rest, self._rest = self._rest, b""
        return [_shown(rest)] if rest else []


def _shown(line: bytes) -> str:
    last_state = line.rstrip(b"\r").rpartition(b"\r")[2]
    text = last_state.decode(errors="backslashreplace")
    return "\t".join(shown(part, LONGEST) for part in text.split("\t"))
