"""What one host reports before a run: its part of `kdcl preflight`."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import fingerprint
from kdcl_dist.data.sources.opening import DataSets
from kdcl_dist.data.stored_fit import check_stored
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import KdclError, one_line
from kdcl_dist.launch.preflight.bank_memory import (
    BankMemory,
    RecordMemory,
    measure_bank_memory,
    measure_record_memory,
)
from kdcl_dist.run.run import versions
from kdcl_dist.run.storage import Folder

__all__ = ["HostReport", "Listener", "inspect_host", "missing_files", "unreachable"]

#: Seconds until this host sees a file of another host: NFS caches for a while that a name does not exist.
VISIBLE_S = 5.0


@dataclass(frozen=True)
class HostReport:
    """What one host reports.

    Attributes:
        address: its address in the cluster.
        hostname: the name that it gives itself.
        versions: of all packages on which a result can depend.
        data: fingerprints of the data sets, by the fields of the recipe that name them.
        problems: why a data set cannot be opened, by the same names, stored logits cannot be used, by
            "logits", or the storage cannot be written, by "storage".
        clock: seconds since 1970 by its clock, at the start of its inspection.
        shm_bytes: free space of /dev/shm, in bytes; None where there is none.
        bank_memory: what the bank of logits takes and what is free here; None for a run without a bank.
        stored: a line on each file of stored logits.
        record_memory: what the record of training logits takes and what is free here; None without one.
    """

    address: str
    hostname: str
    versions: dict[str, str]
    data: dict[str, str]
    problems: dict[str, str]
    clock: float
    shm_bytes: int | None = field(default=None)
    bank_memory: BankMemory | None = None
    stored: list[str] = field(default_factory=list)
    record_memory: RecordMemory | None = None

    @property
    def has_data(self) -> bool:
        """Whether all data sets can be opened."""
        return not self.problems.keys() - {"storage", "logits"}


def inspect_host(
    recipe: Recipe, folder: Folder, probe: str, address: str, extra_versions: Mapping[str, str]
) -> HostReport:
    """Inspect this host.

    Args:
        recipe: the run.
        folder: the folder that will hold it.
        probe: the name of a file to write in the folder, for the other hosts to read.
        address: the host's address in the cluster.
        extra_versions: versions besides those of `kdcl_dist.run.run.versions`.
    """
    clock = time.time()
    data: dict[str, str] = {}
    problems: dict[str, str] = {}
    memory: dict[str, Any] = {}
    sets = DataSets(recipe.data)
    for name in recipe.data.sets:
        try:
            data[name] = fingerprint(dataset := sets.open(name))
            if name == "train":
                memory = _memory(recipe, len(dataset), len(dataset.classes))
        except KdclError as error:
            problems[name] = str(error)
        except Exception as error:  # a user's data set can raise anything
            problems[name] = one_line(error)
    stored: list[str] = []
    try:
        if recipe.stored and not problems:
            stored = check_stored(TrainingData.open(recipe))
    except KdclError as error:
        problems["logits"] = str(error)
    try:
        folder.write(probe, address.encode())
    except KdclError as error:
        problems["storage"] = str(error)
    found = versions() | dict(extra_versions)
    host = address, platform.node(), found
    return HostReport(*host, data, problems, clock, _shm_bytes(), stored=stored, **memory)


def _memory(recipe: Recipe, *sizes: int) -> dict[str, Any]:
    """The fields of the report on what kept logits take here, of so many samples and classes."""
    return {
        "bank_memory": measure_bank_memory(recipe, *sizes),
        "record_memory": measure_record_memory(recipe, *sizes),
    }


def missing_files(folder: Folder, names: Sequence[str], wait_s: float = VISIBLE_S) -> list[str]:
    """Those of the files `names` that this host cannot read within `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    missing = list(names)
    while missing:
        missing = [name for name in missing if not _reads(folder, name)]
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return missing


class Listener:
    """A fresh TCP port on one address of this host that accepts every connection until it is closed."""

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
                self._socket.accept()[0].close()  # `close` ends this wait


def unreachable(endpoints: Sequence[tuple[str, int]], limit_s: float) -> dict[str, str]:
    """Connect to each endpoint within `limit_s` seconds; by address, why a connection failed."""
    failed = {}
    for address, port in endpoints:
        try:
            socket.create_connection((address, port), timeout=limit_s).close()
        except OSError as error:
            failed[address] = one_line(error)
    return failed


def _reads(folder: Folder, name: str) -> bool:
    try:
        return bool(folder.read(name))
    except (FileNotFoundError, KdclError):
        return False


def _shm_bytes() -> int | None:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
