"""The shelf: states of students in the memory of the coordinator's process, for checkpoints in memory.

Students send and fetch them over connections to the store, `kdcl_dist.membership.tcp_store`. The bytes of a
state follow the line of JSON that says how many they are.
"""

from __future__ import annotations

import json
import threading
from io import BufferedRWPair

from kdcl_dist.run.checkpoint import Part

__all__ = ["OPERATIONS", "Shelf"]

#: What members ask of a shelf.
OPERATIONS = ("put", "fetch")


class Shelf:
    """States by checkpoint and student; only those of the checkpoints that the coordinator wants."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, dict[str, tuple[Part, bytes]]] = {}

    def retain(self, *checkpoints: str) -> None:
        """Take states of these checkpoints from now on, and forget those of all others."""
        with self._lock:
            self._states = {checkpoint: self._states.get(checkpoint, {}) for checkpoint in checkpoints}

    def parts(self, checkpoint: str) -> dict[str, Part]:
        """The states of a checkpoint that have arrived whole, by student."""
        with self._lock:
            return {name: part for name, (part, _) in self._states.get(checkpoint, {}).items()}

    def state(self, checkpoint: str, name: str) -> bytes:
        """A student's state; no bytes where there is none."""
        with self._lock:
            return self._states.get(checkpoint, {}).get(name, (None, b""))[1]

    def put(self, stream: BufferedRWPair, checkpoint: str, name: str, sha256: str, size: int) -> None:
        """Take a student's state.

        Raises:
            ConnectionError: the student ended before it had sent all.
        """
        data = stream.read(size)
        if len(data) < size:
            raise ConnectionError(f"{name} ended while it sent its state")
        with self._lock:
            if checkpoint in self._states:
                self._states[checkpoint][name] = Part(sha256, size), data
        stream.write(b"null\n")

    def fetch(self, stream: BufferedRWPair, checkpoint: str, name: str) -> None:
        """Send a state; no bytes where there is none."""
        data = self.state(checkpoint, name)
        stream.write(json.dumps(len(data)).encode() + b"\n")
        stream.write(data)
