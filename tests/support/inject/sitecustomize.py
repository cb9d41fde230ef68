"""Faults on order, in every process that is started with this folder on PYTHONPATH.

KDCL_TEST_FAULTS names a file of lines of JSON: {"who", "phase", "step", "how", "once", "nth"}. A member of a
cohort that enters that phase of that step for the nth time (the first by default) meets the fault, unless the
file `once` exists, which it creates.
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path


def _meet(how: str) -> None:
    if how == "exception":
        raise ArithmeticError("a fault on order")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "kill with a child":  # which holds what is open, but for the connections
        if os.fork() == 0:
            _close_links()
            time.sleep(20)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "block":
        time.sleep(600)
    if how == "cut":  # the group's connections; the coordinator's also those of its store
        _cut_links(socket.AF_INET)
    if how == "cut off":  # the store's too
        _cut_links(socket.AF_INET, socket.AF_INET6)
    if how == "torn":  # killed in the middle of its next write to a disk
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)


def _close_links() -> None:
    """Close the TCP connections of this process, but not what it talks to its launcher by."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            link = socket.socket(fileno=int(entry.name))
        except OSError:  # no socket
            continue
        if link.family == socket.AF_UNIX:
            link.detach()


def _cut_links(*families: int) -> None:
    """End the TCP connections of this process, as a firewall that resets them would."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            fd = os.dup(int(entry.name))
        except OSError:  # closed by now
            continue
        try:
            link = socket.socket(fileno=fd)
        except OSError:  # no socket
            os.close(fd)
            continue
        with link:
            if link.family in families:
                with contextlib.suppress(OSError):  # it listens, or has ended
                    link.getpeername()
                    link.shutdown(socket.SHUT_RDWR)


def _install(path: Path) -> None:
    from kdcl_dist.membership.heartbeat import Heartbeat
    from kdcl_dist.membership.monitor import Monitor

    init, enter, times = Monitor.__init__, Heartbeat.enter, Counter()

    def named(self, *arguments, **more):
        init(self, *arguments, **more)
        self.heartbeat.who = self.name

    def entered(self, phase, step=None):
        enter(self, phase, step)
        if not path.exists():
            return
        for line in path.read_text().splitlines():
            fault = json.loads(line)
            place = {"who": getattr(self, "who", None), "phase": phase, "step": self.step}
            if place.items() <= fault.items() and not Path(fault["once"]).exists():
                times[fault["once"]] += 1
                if times[fault["once"]] == fault.get("nth", 1):
                    Path(fault["once"]).touch()
                    _meet(fault["how"])

    Monitor.__init__, Heartbeat.enter = named, entered


if "KDCL_TEST_FAULTS" in os.environ:
    _install(Path(os.environ["KDCL_TEST_FAULTS"]))
