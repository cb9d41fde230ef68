"""Work in a process of its own, since a user's code may end its process, hang, or take all memory."""

from __future__ import annotations

import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

from kdcl_dist.errors import StartupTimeout, StudentFailed, StudentLost, wrap
from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.launch.messages import Answered, Failed
from kdcl_dist.launch.processes import GRACE_S, await_ready, finish, how_it_ended, receive, start
from kdcl_dist.utils.process import end_with_parent

__all__ = ["answer", "run_apart"]

Result = TypeVar("Result")


def run_apart(limit_s: float, name: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """The result of `work(*arguments)`, called in a new process of this host.

    Args:
        limit_s: seconds after which the process is killed.
        name: of the process.
        work: a function of a module; its result can be pickled, as the arguments can.

    Raises:
        StartupTimeout: the work took longer than the limit.
        StudentLost: the process was killed, as the kernel does where memory lacks.
        StudentFailed: the process died otherwise.
        KdclError: what the work raised.
    """
    entry = "kdcl_dist.launch.preflight.own_process:answer"
    process = start(start_server(), name, entry, work, arguments, limit_s=limit_s)
    try:
        if not await_ready([process], limit_s):
            raise StartupTimeout(f"no answer within {limit_s:g} s (limits.startup_s)")
        match receive(process):
            case Answered(result):
                process.finished = True
                return cast(Result, result)
            case Failed(error):
                raise error
            case _:
                process.handle.join(GRACE_S)
                kind = StudentLost if process.handle.exitcode == -signal.SIGKILL else StudentFailed
                raise kind(f"its process died ({how_it_ended(process)})")
    finally:
        finish(process)


def answer(link: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What the process runs: the work, whose result or error it sends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides
    end_with_parent()
    try:
        link.send(Answered(work(*arguments)))
    except BaseException as error:  # a user's code may raise SystemExit as well
        link.send(Failed(wrap(error, student=None, step=None, phase="start")))
