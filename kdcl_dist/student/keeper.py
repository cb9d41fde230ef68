"""A student's newest states in memory: its own copies, and those at the coordinator, which outlive it."""

from __future__ import annotations

import copy
import threading
import time
from contextlib import suppress
from typing import Any

from torch import Tensor

from kdcl_dist.errors import SilentCorruption
from kdcl_dist.membership.handshake import ForeignPeer
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import RunStore, fetch_state, put_state
from kdcl_dist.run.checkpoint import InMemory, pack, part_of, unpack
from kdcl_dist.student.student import Student

__all__ = ["StateKeeper", "on_host"]

#: Seconds for a state that is being written when the process ends its part in the run: no longer, since a
#: coordinator that hangs takes none.
END_S = 1.0
#: Seconds before each try to send a state. Until it has come, the coordinator asks for no other.
AGAIN_S = (0.0, 1.0, 5.0)


class StateKeeper:
    """Keeps the states of one student, as the parts of a checkpoint.

    Args:
        store: of the run.
        monitor: of this process.
        name: of the student.
        limit_s: seconds in which a state arrives.

    Attributes:
        states: the last two that were kept, by checkpoint. When the coordinator asks for one, the one before
            is whole, and counts until the new one is whole too.
    """

    def __init__(self, store: RunStore, monitor: Monitor, name: str, limit_s: float) -> None:
        self.store, self.monitor, self.name, self.limit_s = store, monitor, name, limit_s
        self.states: dict[str, bytes] = {}
        self._thread: threading.Thread | None = None

    def keep(self, checkpoint: str, student: Student) -> None:
        """Copy the student's state; while the student goes on, a thread keeps and sends it.

        The coordinator asks for one while another is on its way only where it has given that up, as in a
        failure: the new one then waits for its turn.
        """
        work = (checkpoint, on_host(student.state_dict()), self._thread)
        self._thread = threading.Thread(target=self._send, args=work, name="state-keeper", daemon=True)
        self._thread.start()

    def _send(self, checkpoint: str, state: dict[str, Any], before: threading.Thread | None) -> None:
        if before is not None:
            before.join()  # it has the limits of the store
        self.states = dict(list(self.states.items())[-1:])
        data = pack(state)
        self.states = {**self.states, checkpoint: data}
        for again_s in AGAIN_S:
            time.sleep(again_s)
            with suppress(OSError, RuntimeError, ForeignPeer):  # the student itself notices who is lost
                put_state(self.store, checkpoint, self.name, data)
                return

    def state(self, start: InMemory) -> dict[str, Any]:
        """The student's state in a checkpoint in memory: the own copy, else that of the coordinator.

        Raises:
            CoordinatorLost: it cannot be reached.
            SilentCorruption: the state is not the one that was kept.
        """
        part, data = start.parts[self.name], self.states.get(start.key, b"")
        if part_of(data) != part:
            fetch = self.monitor.client.call
            data = fetch(lambda: fetch_state(self.store, start.key, self.name), self.limit_s)
        if part_of(data) != part:
            raise SilentCorruption(
                f"its state of step {start.step} in memory has other bits than were kept: the memory or the "
                "network of a host may be faulty",
                student=self.monitor.name,
            )
        return unpack(data, f"the state of {self.name} of step {start.step} in memory")

    def close(self) -> None:
        """Let the last state leave."""
        if self._thread is not None:
            self._thread.join(END_S)


def on_host(value: Any) -> Any:
    """A copy of a state, with all tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # with its attributes: a network's state has the versions of its layers
        copied.update({key: on_host(each) for key, each in value.items()})
        return copied
    if isinstance(value, list | tuple):
        return type(value)([on_host(each) for each in value])
    return copy.deepcopy(value)
