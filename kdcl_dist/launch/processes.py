"""The processes of a cohort, as their launcher sees them.

They are forked from a server that has imported what they need (see `forkserver`). The launcher need not
import that, so this module imports nothing heavy and takes the function of a process as an import string.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from kdcl_dist.errors import KdclError, StartupTimeout
from kdcl_dist.launch.forkserver import UNKNOWN_CODE, ServerDied, fork
from kdcl_dist.launch.messages import Failed, Finished, Message, RunEndedByFailure
from kdcl_dist.launch.output import Ends, Output, redirect
from kdcl_dist.utils.import_strings import load_object

if TYPE_CHECKING:
    from kdcl_dist.run.process_log import ProcessLog

__all__ = ["GRACE_S", "Process", "await_ready", "finish", "how_it_ended", "receive", "start"]

#: Seconds that a process has to end by itself, and the others to notice a failure, before they are ended.
GRACE_S = 15.0
#: Servers that one start may use up.
SERVERS = 4


@dataclass
class Process:
    """One process of the cohort.

    Attributes:
        name: the name of its worker, or "coordinator".
        handle: what multiprocessing knows of it.
        link: the pipe on which its messages arrive.
        finished: what it reported at its end: True at the end of the run, False where the run was stopped
            before; None without a report.
        error: the failure that it reported.
        ended: whether it is dead, and all its messages are read.
        end_reason: why its launcher killed it, if it did.
        output: what passes on its standard output and error; None where it has those of its launcher.
    """

    name: str
    handle: BaseProcess
    link: Connection
    finished: bool | None = None
    error: KdclError | None = None
    ended: bool = False
    end_reason: str | None = None
    output: Output | None = None

    @property
    def failed(self) -> bool:
        """Whether the process ended, or is about to, without having finished."""
        return self.error is not None or (self.ended and self.finished is None)


def start(
    context: Any, name: str, entry: str, *arguments: Any, limit_s: float, log: ProcessLog | None = None
) -> Process:
    """Start a process, by a new server where that of the context dies meanwhile.

    Args:
        context: of multiprocessing, from `start_server`.
        name: the name of its worker, or "coordinator".
        entry: import string of the function that it runs; the function ends with this process.
        arguments: the function's arguments after the link.
        limit_s: seconds within which a server forks the process.
        log: keeps what the process writes to its standard output and error, which is passed on as well.

    Raises:
        StartupTimeout: no server did.
    """
    deadline = time.monotonic() + limit_s
    for _ in range(SERVERS):
        ours, theirs = context.Pipe()  # anew each time: a process may have been forked that is about to end
        output = None if log is None else Output(log)
        ends = None if output is None else output.ends
        given = (dict(os.environ), entry, ends, theirs, *arguments)
        handle = context.Process(target=_enter, args=given, name=f"kdcl-{name}")
        try:
            fork(handle, deadline)
            if log is not None:
                log.head(f"process {handle.pid} starts")
            return Process(name, handle, ours, output=output)
        except ServerDied:
            ours.close()
            if time.monotonic() > deadline:
                break
        finally:
            theirs.close()
            if output is not None:
                output.begin()
    raise StartupTimeout(
        f"the process of {name} did not start within {limit_s:g} s (limits.startup_s): the server from which "
        "processes are forked died or did not answer; out of memory, or killed by hand?",
        phase="start",
    )


def _enter(
    environment: Mapping[str, str], entry: str, ends: Ends | None, link: Connection, *arguments: Any
) -> None:
    os.environ.clear()  # the server's is of its own start: keys may have been set since
    os.environ.update(environment)
    if ends is not None:
        redirect(ends)
    load_object(entry)(link, *arguments)


def await_ready(processes: Sequence[Process], timeout_s: float) -> list[Process]:
    """The processes from which `receive` returns at once; empty after `timeout_s` seconds without any.

    The death of a process counts as well as its link: a child process may hold the link open.
    """
    sources = {source: process for process in processes for source in (process.link, process.handle.sentinel)}
    ready = {id(sources[source]): sources[source] for source in wait(list(sources), timeout_s)}  # type: ignore[index]
    return list(ready.values())


def receive(process: Process) -> Message | None:
    """The next message of a process that is ready; None if the process died.

    What the message, or the death, says of the process's end is set in `process`.
    """
    try:
        if not process.link.poll():  # the process died, and a child process holds the link
            raise EOFError
        message: Message = process.link.recv()
    except (EOFError, OSError):  # OSError: it died in the middle of a message
        process.ended = True
        return None
    if isinstance(message, Finished):
        process.finished = message.at_end
    elif isinstance(message, Failed | RunEndedByFailure):
        process.error = message.error
    return message


def finish(process: Process) -> None:
    """Wait for a process that is about to end by itself, and end any other."""
    done = process.ended or process.error is not None or process.finished is not None
    process.handle.join(GRACE_S if done else 0)
    if process.handle.is_alive():
        process.handle.terminate()
        process.handle.join(2)
    if process.handle.is_alive():
        process.handle.kill()
        process.handle.join(GRACE_S)  # longer only where the kernel holds it, and then nothing helps
    process.link.close()
    if process.output is not None:
        process.output.close(None if process.finished is not None else _failure_text(process))


def _failure_text(process: Process) -> str:
    """How a process failed, with its traceback; the last thing in its log."""
    if process.error is None:
        return how_it_ended(process)
    return "\n".join(filter(None, [process.error.detail, str(process.error)]))


def how_it_ended(process: Process) -> str:
    """Why a process is dead that reported nothing."""
    if process.end_reason is not None:
        return process.end_reason
    code = process.handle.exitcode
    if code == UNKNOWN_CODE:
        return "how is not known, since the server that forked it has died too"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory, or killed by hand" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {code}"
