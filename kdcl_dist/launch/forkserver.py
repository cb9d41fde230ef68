"""The server from which a cohort's processes on this machine are forked, with their imports done.

This module imports nothing heavy, so that the server starts first and imports at the same time as its parent.
The server may die, or be stopped, at any moment: then the next start makes a new one. The processes that it
has forked live on, and their launcher watches their life itself.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import context, forkserver, popen_forkserver, spawn, util
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kdcl_dist.errors import PreflightError, one_line
from kdcl_dist.utils.process import catches, state_of

__all__ = [
    "FOR_ASSISTANTS",
    "FOR_COORDINATORS",
    "FOR_STUDENTS",
    "LATER",
    "UNKNOWN_CODE",
    "ServerDied",
    "fork",
    "start_server",
]

#: What the server of students imports: torch's optimisers import torch._dynamo at their first use, for 2 s.
FOR_STUDENTS = ["kdcl_dist.launch.entrypoints", "torch._dynamo"]
#: What that of a coordinator's assistant imports: also numba, for half a second.
FOR_ASSISTANTS = ["kdcl_dist.launch.entrypoints", "kdcl_dist.distillation.machine_code"]
#: What that of a coordinator imports: also TensorBoard's files, for half a second.
FOR_COORDINATORS = [
    *FOR_ASSISTANTS,
    "tensorboardX.event_file_writer",
    "tensorboardX.summary",
]
#: What one server for all imports; the rest of FOR_COORDINATORS once this signal tells it that a run trains.
MODULES = [*FOR_STUDENTS, "kdcl_dist.launch.later_imports"]
LATER = signal.SIGUSR1
#: Seconds after which a run trains; its first coordinator imports for itself, beside the students.
LATER_S = 10.0
#: The exit code of a process whose server died before it could tell; no process can end with it.
UNKNOWN_CODE = 256
#: Characters of the longest folder of temporary files: Linux takes 107 for a socket's path.
MAX_TMPDIR = 75
#: Seconds in which a live server tells the exit code of a process that has ended.
ANSWER_S = 1.0
#: Seconds for which a server may be stopped, and between two looks at it.
STOPPED_S, POLL_S = 3.0, 0.1
#: One thread at a time starts the server.
_starting = threading.Lock()
#: One thread at a time starts a process.
_forking = threading.Lock()


class ServerDied(Exception):
    """The server died, or was ended since it was stopped or too slow, before it forked a process."""


class _Popen(popen_forkserver.Popen):
    """A process that was forked by the server; its end is known without the server.

    Attributes:
        sentinel: is ready when the process has ended.
        status: the pipe by which the server tells the exit code.
    """

    finalizer: Any = None

    def _launch(self, process_obj: Any) -> None:
        try:
            with _forking, _without_main():
                super()._launch(process_obj)  # type: ignore[misc]
        except BaseException:
            if self.finalizer is not None:  # a process that was forked all the same ends with this pipe
                self.finalizer()
            raise
        self.status = self.sentinel
        # Without a descriptor of the process (it has ended, or Linux before 5.3) the server's word counts.
        with contextlib.suppress(OSError):
            self.sentinel = os.pidfd_open(self.pid)
            util.Finalize(self, os.close, (self.sentinel,))

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, None while the process lives; `flag` 0 waits for its end."""
        if self.returncode is None and wait([self.sentinel], 0 if flag == os.WNOHANG else None):
            self.returncode = UNKNOWN_CODE
            with contextlib.suppress(OSError, EOFError):
                if wait([self.status], ANSWER_S):
                    self.returncode = forkserver.read_signed(self.status)
        return self.returncode


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Processes that are started in the block do not run the user's script again.

    Nothing of it is needed: its classes and functions travel as objects (`kdcl_dist.utils.objects`). So a
    script needs no `if __name__ == "__main__":`.
    """
    original: Any = spawn.get_preparation_data

    def prepared(name: str) -> dict[str, Any]:
        """What a process needs of its parent, without the parent's main module."""
        found: dict[str, Any] = original(name)
        return {key: value for key, value in found.items() if not key.startswith("init_main_")}

    spawn.get_preparation_data = prepared
    try:
        yield
    finally:
        spawn.get_preparation_data = original


class _Process(context.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:
        return _Popen(process_obj)


class _Context(context.ForkServerContext):
    Process = _Process


def start_server(modules: Sequence[str] | None = None, *, for_run: bool = False) -> Any:
    """The multiprocessing context of the server; starts the server where none lives, without a wait.

    Args:
        modules: the server imports these; None: what the processes of a run on this machine need.
        for_run: a run begins now: the server imports what another coordinator needs, once the run trains.

    Raises:
        PreflightError: no server can be started on this machine as it is.
    """
    forkserver.set_forkserver_preload(list(MODULES if modules is None else modules))
    try:
        _ensure_running()
    except OSError as error:
        raise PreflightError(
            f"no server from which processes are forked can be started ({one_line(error)}): its folder of "
            f"temporary files, TMPDIR={os.environ.get('TMPDIR', '')}, has to be one that can be written to, "
            f"with a path of {MAX_TMPDIR} characters at most"
        ) from error
    if for_run and modules is None:
        _tell_later()
    return _Context()


def _tell_later() -> None:
    timer = threading.Timer(LATER_S, _let_import)
    timer.daemon = True
    timer.start()


def _let_import() -> None:
    """Tell the server that it may import the rest; later, if it has not come so far, or is none of ours.

    The signal ends a process that does not expect it.
    """
    if (pid := _server_pid()) is None:
        return
    if not catches(pid, LATER):
        _tell_later()
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, LATER)


def _ensure_running() -> None:
    # torch logs lines of C++ for each connection that breaks; the launcher reports the cause.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Ctrl-C reaches the whole foreground group: the server must not die of it while it imports.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _starting, _own_folder():
            forkserver.ensure_running()
            _remove_name()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """Sockets made in the block lie in a folder of its own, not in that which multiprocessing keeps."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    before = config.get("tempdir")
    with tempfile.TemporaryDirectory(prefix="kdcl-", ignore_cleanup_errors=True) as config["tempdir"]:
        try:
            yield
        finally:
            config["tempdir"] = before


def _remove_name() -> None:
    """Delete the server's socket, which is reached by a file descriptor from now on.

    So nothing is left in the temporary folder, however this process ends: Ray kills its workers.
    """
    server: Any = forkserver._forkserver
    name = Path(server._forkserver_address)
    if not name.is_relative_to("/proc"):
        server._forkserver_address = f"/proc/self/fd/{os.open(name, os.O_PATH)}"
        name.unlink()


def fork(handle: BaseProcess, deadline: float) -> None:
    """Start a process of the server's context; its function must end with this process.

    Args:
        handle: the process. It cannot be started again after a failure.
        deadline: by the monotonic clock, in seconds; until then the server may import.

    Raises:
        ServerDied: no process was started, and the server is ended.
    """
    pid = _server_pid()
    try:
        _ensure_running()
        pid = _server_pid()
        with _watched(pid, deadline):
            handle.start()
    except (EOFError, OSError) as error:
        _end(pid)
        raise ServerDied from error


def _server_pid() -> int | None:
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


@contextlib.contextmanager
def _watched(pid: int | None, deadline: float) -> Iterator[None]:
    """Kill the server if it is stopped, or at the deadline: what waits for it in the block then raises."""
    done = threading.Event()

    def watch() -> None:
        """Look at the server until the block has ended."""
        ran_at = time.monotonic()
        while pid is not None and not done.wait(POLL_S):
            now = time.monotonic()
            ran_at = ran_at if state_of(pid) == "T" else now
            if now - ran_at > STOPPED_S or now > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return

    thread = threading.Thread(target=watch, name="kdcl-server-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()  # it looks at `done` ten times a second


def _end(pid: int | None) -> None:
    """End the server of a process id, unless another thread has; the next start makes a new one."""
    server: Any = forkserver._forkserver
    with server._lock:
        if pid is None or server._forkserver_pid != pid:
            return
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # it was killed, so this does not last
        os.close(server._forkserver_alive_fd)
        os.close(int(Path(server._forkserver_address).name))
        server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
