"""The cohort's processes, as the actor of the coordinator knows them from the workers of Ray."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from kdcl_dist.launch.ray.common import end_process, end_stopped, ping
from kdcl_dist.launch.ray.private import draining_nodes

__all__ = ["RayProcesses"]

#: Seconds between two polls of the draining nodes.
DRAIN_POLL_S = 2.0
#: Seconds within which a worker ends the process that it has started.
KILL_S = 5.0


@dataclass(frozen=True)
class _Registered:
    """A process that trains (0: none at present), the actor of the worker that started it, and their node."""

    pid: int
    worker: Any
    node: str


class RayProcesses:
    """What `kdcl_dist.coordinator.processes.Processes` asks, for processes on several hosts.

    Attributes:
        registered: the process and worker of each student or replica, by its name.
        names: for the id of each of the cohort's nodes, the name of a process there.
        pings: the unanswered pings, by the name and id of the process whose worker was asked: processes of
            several hosts may have the same id.
        announced: ids of the nodes whose notice was given.
    """

    def __init__(self) -> None:
        self.registered: dict[str, _Registered] = {}
        self.names = {ray.get_runtime_context().get_node_id(): "the coordinator"}
        self.pings: dict[tuple[str, int], Any] = {}
        self.announced: set[str] = set()

    def register(self, name: str, pid: int, node: str, worker: Any) -> None:
        """Note which process, 0 for none, a worker on a node has started to train."""
        before, self.registered[name] = self.registered.get(name), _Registered(pid, worker, node)
        self.names[node] = name
        if before is not None and before.pid and (before.node, before.pid) != (node, pid):
            self._end_left(before)

    def _end_left(self, before: _Registered) -> None:
        """End the process of a worker that has died: it cannot end itself while it is stopped."""
        for known in list(self.registered.values()):  # all of that host, since some may have died with it
            if known.node == before.node:
                known.worker.__ray_call__.remote(end_stopped, before.pid)

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether the process is known to be dead: its worker says so, or is dead itself.

        A ping of a dead worker fails; a ping of a live one waits or succeeds.
        """
        known = self.registered.get(name)
        if known is None or known.pid != pid:
            return known is not None
        if (name, pid) not in self.pings:
            self.pings[name, pid] = known.worker.__ray_call__.remote(ping)
        if not ray.wait([self.pings[name, pid]], timeout=0)[0]:
            return False
        try:
            ray.get(self.pings.pop((name, pid)))
        except RayError:
            return True
        return False

    def has(self, name: str) -> bool:
        """Whether a worker of Ray was there for a student or replica, and had started its process."""
        return name in self.registered

    def end(self, name: str, pid: int | None) -> None:
        """Let the worker end its process; a worker that does not answer is ended itself."""
        known = self.registered.get(name)
        if known is None or pid not in (known.pid, None):  # the process is replaced already
            return
        answer = known.worker.__ray_call__.remote(end_process, known.pid)
        try:
            ray.get(answer, timeout=KILL_S)
        except RayError:
            ray.kill(known.worker, no_restart=False)  # one that Ray is about to start again shall come back

    def watch_draining(self, notice: Callable[[str], None]) -> None:
        """Poll the draining nodes for ever; in a thread, since Ray's answer may take any time.

        Args:
            notice: called once for each draining host, with a line that names its worker.
        """
        while True:
            with contextlib.suppress(RayError, RuntimeError):
                if (draining := draining_nodes()) is None:
                    return
                if new := sorted(draining & set(self.names) - self.announced):
                    self.announced.update(new)
                    notice(f"the host of {', '.join(self.names[node] for node in new)} is to go")
            time.sleep(DRAIN_POLL_S)
