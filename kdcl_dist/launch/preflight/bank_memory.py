"""The memory, or disk space, that logits take which the coordinator keeps: the bank, and the record."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.logit_bank import bank_bytes
from kdcl_dist.coordinator.logit_record import record_bytes

__all__ = ["BankMemory", "RecordMemory", "measure_bank_memory", "measure_record_memory"]

MEMINFO = Path("/proc/meminfo")
#: The limit and the use of the memory of this process's container, in version 2 of control groups.
CGROUP = Path("/sys/fs/cgroup")
MB = 1e6


@dataclass(frozen=True)
class BankMemory:
    """What the bank takes and what is free.

    Attributes:
        size: the numbers of students, samples and classes, in words.
        needed: bytes.
        folder: the folder of the bank's file; None: the bank lies in memory.
        free: bytes; None where they are not known, or the folder is missing.
    """

    size: str
    needed: int
    folder: str | None
    free: int | None

    def __str__(self) -> str:
        """The size in words, and the bytes in MB."""
        free = "" if self.free is None else f", {self.free / MB:,.1f} MB free"
        where = f"a file in {self.folder}" if self.folder else "memory"
        return f"{self.size}: {self.needed / MB:,.1f} MB in {where}{free}"

    @property
    def lack(self) -> str | None:
        """Why the bank does not fit, and the field to change; None if it fits."""
        if self.folder is not None and self.free is None:
            return f"distillation.bank.folder: {self.folder!r} is no folder of the coordinator's host"
        if self.free is None or self.needed <= self.free:
            return None
        other = "another distillation.bank.folder" if self.folder else "distillation.bank.folder, for a file"
        return f"{self}; set {other}, or a small distillation.bank.top_k"


def measure_bank_memory(recipe: Recipe, samples: int, classes: int) -> BankMemory | None:
    """The memory of a recipe's bank on this host; None for a recipe without a bank.

    Args:
        recipe: the run.
        samples, classes: of its training data.
    """
    if not recipe.distillation.keeps_logits:
        return None
    bank, students = recipe.distillation.bank, len(recipe.networks)  # files take no room in it
    size = f"{students} students, {samples:,} samples, {classes:,} classes"
    size += "" if bank.top_k is None or bank.top_k >= classes else f", the largest {bank.top_k} of them kept"
    needed = _copies(recipe) * bank_bytes(students, samples, classes, bank.top_k)
    free = _free_memory() if bank.folder is None else _free_disk(bank.folder)
    return BankMemory(size, needed, bank.folder, free)


@dataclass(frozen=True)
class RecordMemory:
    """What the record of training logits takes and what is free.

    Attributes:
        size: the students, and the numbers of samples, views and classes, in words.
        stored: bytes of a checkpoint's share, and of all files.
        needed: bytes of memory, with those of a file while it is made, and of checkpoints in memory.
        free: bytes of memory; None where they are not known.
    """

    size: str
    stored: int
    needed: int
    free: int | None

    def __str__(self) -> str:
        """The size in words, and the bytes in MB."""
        free = "" if self.free is None else f", {self.free / MB:,.1f} MB free"
        stored, needed = self.stored / MB, self.needed / MB
        return (
            f"{self.size}: {stored:,.1f} MB in each checkpoint and in files, {needed:,.1f} MB in memory{free}"
        )

    @property
    def lack(self) -> str | None:
        """Why the record does not fit, and the fields to change; None if it fits."""
        if self.free is None or self.needed <= self.free:
            return None
        return f"{self}; set distillation.record_logits.top_k, dtype fp16, fewer students or data.views"


def measure_record_memory(recipe: Recipe, samples: int, classes: int) -> RecordMemory | None:
    """The memory of a recipe's record of logits on this host; None for a recipe without one.

    Args:
        recipe: the run.
        samples, classes: of its training data.
    """
    if (asked := recipe.distillation.record_logits) is None:
        return None
    kept = f"the largest {asked.top_k} of {classes:,}" if asked.top_k else f"{classes:,}"
    size = f"{', '.join(asked.students)}, {samples:,} samples, {recipe.data.views} views, {kept} classes"
    stored = record_bytes(recipe, samples, classes)
    needed = _copies(recipe) * stored + 2 * stored // len(asked.students)
    return RecordMemory(f"{size} in {asked.dtype}", stored, needed, _free_memory())


def _copies(recipe: Recipe) -> int:
    """How often logits lie in memory: also for the newest checkpoint in memory, and the next."""
    return 3 if recipe.checkpoint.in_memory_every_steps else 1


def _free_disk(folder: str) -> int | None:
    return shutil.disk_usage(folder).free if Path(folder).is_dir() else None


def _free_memory() -> int | None:
    """The bytes available on the machine, or left in this process's container, whichever is less."""
    found = []
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        found.append(1024 * int(fields["MemAvailable"].split()[0]))
        found.append(int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):  # no Linux, no control group, or one without a limit ("max")
        pass
    return min(found, default=None)
