"""What a process that the server has forked does in tests."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection, Listener

from kdcl_dist.launch.messages import (
    EndpointOpened,
    EventEmitted,
    Finished,
    Noticed,
    Question,
    Reply,
    StopAsked,
)
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.events import Note
from kdcl_dist.utils.process import end_with_parent


def obey(link: Connection, *_: object) -> None:
    """Send the process id; end as asked, or with the launcher."""
    end_with_parent()
    link.send(os.getpid())
    os._exit(link.recv())


def with_folder(link: Connection, *_: object) -> None:
    """Send the process id; listen on a socket, as a student's loaders do."""
    end_with_parent()
    with Listener(family="AF_UNIX"):
        link.send(os.getpid())
        time.sleep(600)


def write(link: Connection, *_: object) -> None:
    """Print, write to the descriptors and by C's stdio, as asked; end as a C library does that gives up."""
    end_with_parent()
    libc = ctypes.CDLL(None)
    print("printed", flush=False)
    print("printed to stderr", file=sys.stderr, flush=False)
    os.write(1, b"to descriptor 1\n")
    os.write(2, b"to descriptor 2 \xff\n")
    libc.printf(b"by printf\n")
    link.send(os.getpid())
    if link.recv() == "child":
        subprocess.Popen(["sleep", "600"])
    os.write(2, b"last words\n")
    os.abort()


def tell_environment(link: Connection, name: str) -> None:
    """Send the value of a variable of this process's environment."""
    link.send(os.environ.get(name))


def has_imported(link: Connection, name: str) -> None:
    """Send whether a module is imported."""
    link.send(name in sys.modules)


def coordinate(link: Connection, *_: object) -> None:
    """Open a store at the port of the process id; tell what is noticed and replied; end as asked."""
    end_with_parent()
    link.send(EndpointOpened(Endpoint("h", os.getpid())))
    link.send(Question(1, "has", ("a",)))
    while True:
        match link.recv():
            case StopAsked():
                link.send(Finished(False))
                return
            case Noticed(text):
                link.send(EventEmitted(Note(text)))
            case Reply(_, answer):
                link.send(EventEmitted(Note(f"has: {answer}")))


def terminated(link: Connection, *_: object) -> None:
    """Coordinate a run in which this process gets SIGTERM."""
    from kdcl_dist.launch import entrypoints

    def run_coordinator(*_: object, **__: object) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    changed = {"host_store": lambda host: (None, Endpoint(host, 1)), "run_coordinator": run_coordinator}
    vars(entrypoints).update(changed)
    entrypoints.coordinate(link, None, "h", False)  # type: ignore[arg-type]


def opens_nothing(link: Connection, *_: object) -> None:
    """Hang before the store is open."""
    end_with_parent()
    time.sleep(600)
