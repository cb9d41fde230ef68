"""Injected faults, in every process that is started with this folder on PYTHONPATH.

KDCL_TEST_FAULTS names a file of lines of JSON: {"who", "phase", "step", "how", "nth", "once", "after",
"until"}. A process of a run that enters that phase of that step for the nth time meets the fault, unless the
file `once` exists, which it creates, or the file `after` does not.

The fault "hold" keeps tests independent of the machine's speed: the process waits for `until`. That is a
file, which another fault or the test creates, or for the coordinator "stop" (somebody has asked the run to
stop), "returns" (a student that is away asks to join again), "kept" (the states of a checkpoint in memory
have arrived) or "changes" (all that is asked of the cohort can be met).
"""

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import ray_workers

#: Seconds after which a held process gives up: more than any machine takes for what it waits for.
HOLD_S = 140.0
#: Seconds for which a disk is disturbed: less than a storage is retried for.
DISK_S = 1.5
#: What the process gets whose id is in the file `until`: that which launched the run.
LAUNCHER = {"launcher killed": signal.SIGKILL, "launcher stopped": signal.SIGSTOP}
#: The run's store as this process has it, once for each of its monitors.
STORES = []


def _meet(how: str, until: str) -> None:
    if how == "hold":
        _hold(until)
    if how == "exception":
        raise ArithmeticError("an injected fault")
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
        _cut_links(spared={store.connection.link.getsockname() for store in STORES})
    if how == "cut off":  # the store's too
        _cut_links()
    if how == "nan":  # in the next message
        _poison_logits()
    if how == "half sent":  # killed in the middle of sending its next state
        _die_in_sending()
    if how.startswith("disk"):
        _disturb_disk(how)
    if how in LAUNCHER:
        os.kill(int(Path(until).read_text()), LAUNCHER[how])
    if how == "torn":  # killed in the middle of its next write to a disk
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)


def _poison_logits() -> None:
    from kdcl_dist.exchange.message import Message

    write_rows = Message.write_rows

    def poisoned(message, ids, logits, labels=None):
        Message.write_rows = write_rows
        write_rows(message, ids, logits * float("nan"), labels)

    Message.write_rows = poisoned


def _die_in_sending() -> None:
    from kdcl_dist.student.keeper import StateKeeper, pack

    def half_sent(self, checkpoint, student):
        data, link = pack(student.state_dict()), self.store.connection.another().link
        request = json.dumps(["put", checkpoint, self.name, "", len(data)]).encode() + b"\n"
        link.sendall(request + data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    StateKeeper.keep = half_sent


def _disturb_disk(how: str) -> None:
    """For some seconds the disk is slow, fails, or is full."""
    fsync, until = os.fsync, time.monotonic() + DISK_S

    def disturbed(file):
        if time.monotonic() > until:
            os.fsync = fsync
        elif how == "disk slow":
            time.sleep(0.5)
        elif how == "disk fails":
            raise OSError(errno.EIO, "Input/output error")
        else:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    os.fsync = disturbed


def _hold(until: str) -> None:
    if until == "stop":
        _await(_coordinator_loop().stop)
    elif until == "kept":
        memory = _coordinator_loop().memory
        _await(lambda: not memory.is_on_its_way())
    elif until == "returns":
        loop = _coordinator_loop()
        if len(loop.present) < len(loop.recipe.students):
            _await(loop.has_returned)
            time.sleep(sys.modules[type(loop).__module__].POLL_S + 0.1)  # so that this step looks for them
    elif until == "changes":
        loop = _coordinator_loop()
        _await(lambda: loop.change.asked and loop.change.asked == loop.change.ready())
        time.sleep(sys.modules[type(loop).__module__].POLL_S + 0.1)  # so that this step looks for them
    else:
        _await(Path(until).exists)


def _await(happened) -> None:
    deadline = time.monotonic() + HOLD_S
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"held for {HOLD_S:g} s in vain")
        time.sleep(0.02)


def _coordinator_loop():
    """The loop that is on this thread's stack: to import its class would bring torch into every process."""
    frame = sys._getframe()
    while type(frame.f_locals.get("self")).__name__ != "CoordinatorLoop":
        frame = frame.f_back
    return frame.f_locals["self"]


def _close_links() -> None:
    """Close the TCP connections of this process, but not what it talks to its launcher by."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            link = socket.socket(fileno=int(entry.name))
        except OSError:  # no socket
            continue
        if link.family == socket.AF_UNIX:
            link.detach()


def _cut_links(spared=()) -> None:
    """End the TCP connections of this process but for some, as a firewall that resets them would."""
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
            if link.family in (socket.AF_INET, socket.AF_INET6) and link.getsockname() not in spared:
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
        STORES.append(self.store)

    def entered(self, phase, step=None):
        enter(self, phase, step)
        if not path.exists():
            return
        for line in path.read_text().splitlines():
            fault = json.loads(line)
            here = {"who": getattr(self, "who", None), "phase": phase, "step": self.step}
            once, after = Path(fault["once"]), fault["after"]
            if here.items() <= fault.items() and not once.exists() and (not after or Path(after).exists()):
                times[once] += 1
                if times[once] == fault["nth"]:
                    once.touch()
                    _meet(fault["how"], fault["until"])

    Monitor.__init__, Heartbeat.enter = named, entered


if "KDCL_TEST_LIGHT_WORKERS" in os.environ:  # not in benchmarks, which inject faults too
    ray_workers.start()
if "KDCL_TEST_FAULTS" in os.environ:
    _install(Path(os.environ["KDCL_TEST_FAULTS"]))
if "KDCL_TEST_BROKEN" in os.environ:
    import broken_builds

    getattr(broken_builds, os.environ["KDCL_TEST_BROKEN"])()
