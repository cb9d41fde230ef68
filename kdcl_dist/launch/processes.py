"""The processes of a cohort, as whoever starts them sees them.

They are forked from a server that has imported what they need (see `forkserver`). Who starts them
need not import that, so this module imports nothing heavy; what they do is in `kdcl_dist.launch.entrypoints`.
"""

from __future__ import annotations

import importlib
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from kdcl_dist.errors import KdclError

__all__ = ["GRACE_S", "Process", "finish", "how_it_ended", "start"]

#: Seconds that a process has to end by itself, and the others to notice a failure, before they are ended.
GRACE_S = 15.0


@dataclass
class Process:
    """One process of the cohort.

    Attributes:
        name: its place in the cohort.
        process: its handle.
        link: what it says arrives here.
        finished: its own word at its end: True at the end of the run, False when that was stopped before.
        error: why it failed, if it could say so.
        ended: whether it says no more.
        why: why it was killed, if whoever started it did so.
    """

    name: str
    process: BaseProcess
    link: Connection
    finished: bool | None = None
    error: KdclError | None = None
    ended: bool = False
    why: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the process ended, or is about to, without having finished."""
        return self.error is not None or (self.ended and self.finished is None)


def start(context: Any, name: str, role: str, *arguments: Any) -> Process:
    """Start a process.

    Args:
        context: of multiprocessing, from `start_server`.
        name: its place in the cohort.
        role: the function of `kdcl_dist.launch.entrypoints` that it runs.
        arguments: those after the link.
    """
    ours, theirs = context.Pipe()
    process = context.Process(target=_enter, args=(role, theirs, *arguments), name=f"kdcl-{name}")
    process.start()
    theirs.close()
    return Process(name, process, ours)


def _enter(role: str, link: Connection, *arguments: Any) -> None:
    members = importlib.import_module("kdcl_dist.launch.entrypoints")
    getattr(members, role)(link, *arguments)


def finish(member: Process) -> None:
    """Wait for a process that is about to end by itself, and end any other."""
    done = member.ended or member.error is not None or member.finished is not None
    member.process.join(GRACE_S if done else 0)
    if member.process.is_alive():
        member.process.terminate()
        member.process.join(2)
    if member.process.is_alive():
        member.process.kill()
        member.process.join()
    member.link.close()


def how_it_ended(member: Process) -> str:
    """Why a process is gone that said nothing."""
    if member.why is not None:
        return member.why
    code = member.process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory, or killed by hand" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {code}"
