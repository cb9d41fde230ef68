"""What one host finds when it looks around before a run: its part of `kdcl preflight`."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import fingerprint
from kdcl_dist.data.subset import open_classes
from kdcl_dist.errors import KdclError, one_line
from kdcl_dist.launch.preflight.bank_memory import Room, look_for_room
from kdcl_dist.run.run import versions
from kdcl_dist.run.storage import Folder

__all__ = ["Listener", "Report", "connect", "enter", "look", "unread"]

#: Seconds for which a file of another host may stay unseen: NFS remembers that a name was not there.
SEEN_S = 5.0


@dataclass(frozen=True)
class Report:
    """One host.

    Attributes:
        address: its address in the cluster.
        hostname: its own name.
        versions: of all that a result can depend on.
        data: fingerprints of the data sets "train" and "test".
        problems: why a data set cannot be opened, or the storage not be written, by "train", "test" and
            "storage".
        clock: seconds since 1970 by its clock, when it was asked.
        shm_bytes: free space of /dev/shm, in bytes; None where there is none.
        bank: room for the bank of logits, if this is the coordinator's host; None if the run has none.
    """

    address: str
    hostname: str
    versions: dict[str, str]
    data: dict[str, str]
    problems: dict[str, str]
    clock: float
    shm_bytes: int | None = field(default=None)
    bank: Room | None = None


def look(recipe: Recipe, folder: Folder, mark: str | None, address: str, more: Mapping[str, str]) -> Report:
    """Look around on this host.

    Args:
        recipe: the run.
        folder: the folder that will hold it.
        mark: a file to write there for the other hosts to read, or None to write nothing.
        address: the host's address in the cluster.
        more: versions besides those of `kdcl_dist.run.run.versions`.
    """
    clock = time.time()
    data: dict[str, str] = {}
    problems: dict[str, str] = {}
    room: Room | None = None
    for name, spec in (("train", recipe.data.train), ("test", recipe.data.test)):
        try:
            data[name] = fingerprint(dataset := open_classes(spec, recipe.data.classes))
            if name == "train":
                room = look_for_room(recipe, len(dataset), len(dataset.classes))
        except KdclError as error:
            problems[name] = str(error)
        except Exception as error:  # a user's data set can raise anything
            problems[name] = one_line(error)
    if mark is not None:
        try:
            folder.write(mark, address.encode())
        except KdclError as error:
            problems["storage"] = str(error)
    found = versions() | dict(more)
    return Report(address, platform.node(), found, data, problems, clock, _shm_bytes(), room)


def enter(root: str) -> None:
    """Look up relative paths and import strings where the command was called, if that folder is here."""
    if Path(root).is_dir():
        os.chdir(root)
    if root not in sys.path:
        sys.path.insert(0, root)


def unread(folder: Folder, marks: Sequence[str], wait_s: float = SEEN_S) -> list[str]:
    """The files among `marks` that this host does not see within some seconds."""
    deadline = time.monotonic() + wait_s
    missing = list(marks)
    while missing:
        missing = [mark for mark in missing if not _reads(folder, mark)]
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return missing


class Listener:
    """A fresh TCP port on one address of this host, which accepts whoever comes until it is closed."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, 0), family=family)
        self.endpoint: tuple[str, int] = (address, self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="kdcl-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):  # shutdown wakes the thread, which closing alone does not
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(2)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._socket.accept()[0].close()


def connect(endpoints: Sequence[tuple[str, int]], limit_s: float) -> dict[str, str]:
    """Try to reach each endpoint; why it failed, by address, of those that were not reached."""
    failed = {}
    for address, port in endpoints:
        try:
            socket.create_connection((address, port), timeout=limit_s).close()
        except OSError as error:
            failed[address] = one_line(error)
    return failed


def _reads(folder: Folder, mark: str) -> bool:
    try:
        return bool(folder.read(mark))
    except (FileNotFoundError, KdclError):
        return False


def _shm_bytes() -> int | None:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
