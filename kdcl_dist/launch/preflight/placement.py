"""Whether the hosts of a cluster have the capacity for a cohort, and if not, which worker lacks what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.student import Student

__all__ = [
    "ACCELERATOR",
    "Host",
    "Need",
    "Slot",
    "assign",
    "kinds_of",
    "lacks",
    "need_beside",
    "needs_of",
    "reserved",
    "spares_in_words",
    "with_spares",
]

#: Ray's label of a host's type of accelerator.
ACCELERATOR = "ray.io/accelerator-type"
#: Ray counts a resource in units of this part of one, to the nearest: six sixths would be more than one GPU.
RAY_UNITS = 10_000


@dataclass(frozen=True)
class Need:
    """What one worker takes: CPU cores, GPUs or a share of one, and the accelerator type, None for any.

    `is_spare`: whether it waits to take over for another; it then has no student.
    """

    student: str
    cpu: float
    gpu: float = 0.0
    accelerator: str | None = None
    is_spare: bool = False

    def __str__(self) -> str:
        parts = [f"CPU {self.cpu:g}"] + [f"GPU {self.gpu:g}"] * bool(self.gpu)
        return ", ".join(parts) + (f" on a host with {self.accelerator}" if self.accelerator else "")

    @property
    def resources(self) -> dict[str, float]:
        """CPU, and GPU if any, by Ray's names."""
        return {"CPU": self.cpu} | ({"GPU": self.gpu} if self.gpu else {})

    @property
    def label_selector(self) -> dict[str, str]:
        """The label that Ray looks for in a host; empty for any accelerator type."""
        return {ACCELERATOR: self.accelerator} if self.accelerator else {}


@dataclass
class Host:
    """What one host offers."""

    address: str
    cpu: float
    gpu: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kind = self.labels.get(ACCELERATOR)
        gpu = f", GPU {self.gpu:g}" * bool(self.gpu) + f", {kind}" * bool(kind)
        return f"{self.address}: CPU {self.cpu:g}{gpu}"

    def suits(self, need: Need) -> bool:
        """Whether the worker could run here if it were alone."""
        right = need.accelerator in (None, self.labels.get(ACCELERATOR))
        return right and self.cpu >= need.cpu and self.gpu >= need.gpu


@dataclass(frozen=True)
class Slot:
    """Where a worker runs: the index of its host, and of the host's GPU, None without one."""

    host: int
    gpu: int | None


def needs_of(recipe: Recipe, hosts: Sequence[Host] = ()) -> list[Need]:
    """The needs of the cohort's workers: each takes what its own student asks for.

    Students of `gpu: auto` take the largest of the shares 1, 1/2, 1/3, ... of a GPU with which all workers of
    the cohort, and its spares, find a place on the hosts; none if there is no such share.
    """
    students = [recipe.students[worker.student] for worker in recipe.workers]
    if any(student.resources.gpu == "auto" for student in students):
        for sharing in range(1, len(with_spares(recipe, _needs(students, auto=0.0))) + 1):
            needs = _needs(students, auto=RAY_UNITS // sharing / RAY_UNITS)
            if not lacks(with_spares(recipe, needs), hosts):
                return needs
    return _needs(students, auto=0.0)


def need_beside(student: Student, taken: Sequence[Need], hosts: Sequence[Host]) -> Need:
    """The need of one more worker of a student, beside others that have their places.

    With `gpu: auto` it takes the largest share, as of `needs_of`, that they leave; none if they leave none.
    """
    for sharing in range(1, len(taken) + 2):
        (need,) = _needs([student], auto=RAY_UNITS // sharing / RAY_UNITS)
        if not lacks([*taken, need], hosts):
            return need
    return _needs([student], auto=0.0)[0]


def reserved(recipe: Recipe, hosts: Sequence[Host] = ()) -> list[Need]:
    """The needs of all that a run reserves on the hosts: of its workers, and then of its spares."""
    return with_spares(recipe, needs_of(recipe, hosts))


def with_spares(recipe: Recipe, needs: Sequence[Need]) -> list[Need]:
    """The needs of the cohort's workers, and then of its spares: `failure.spares` for each different need."""
    different = dict.fromkeys(replace(need, student="", is_spare=True) for need in needs)
    return [*needs, *(spare for spare in different for _ in range(recipe.failure.spares))]


def spares_in_words(needs: Sequence[Need]) -> str:
    """How many spares there are, and what they reserve; empty without any."""
    if not (counts := Counter(str(need) for need in needs if need.is_spare)):
        return ""
    parts = "; ".join(f"{count} of {text}" for text, count in counts.items())
    return f"failure.spares: on Ray {counts.total()} more workers wait to take over ({parts})"


def _needs(students: Sequence[Student], auto: float) -> list[Need]:
    return [
        Need(
            student.name,
            student.resources.cpu,
            student.resources.gpu_share(auto),
            student.accelerator,
        )
        for student in students
    ]


def kinds_of(needs: Sequence[Need]) -> list[list[int]]:
    """The indices of the needs with the same CPU cores and GPUs, in the order in which they choose hosts.

    Ray places what needs the same in the order in which it is given, and would give a host with an
    accelerator to the first that could run anywhere.
    """
    kinds: dict[tuple[float, float], list[int]] = {}
    for index in sorted(range(len(needs)), key=lambda index: _precedence(needs[index])):
        kinds.setdefault((needs[index].cpu, needs[index].gpu), []).append(index)
    return sorted(kinds.values(), key=lambda kind: min(_precedence(needs[index]) for index in kind))


def _precedence(need: Need) -> tuple[bool, bool, float, float]:
    """The place in the order in which needs choose hosts: the hardest to place first, and spares last."""
    return need.is_spare, need.accelerator is None, -need.gpu, -need.cpu


def assign(needs: Sequence[Need], hosts: Sequence[Host]) -> list[Slot | None]:
    """A slot for each need, on the first host with free capacity; None where there is none.

    Needs of an accelerator type choose first. Where that leaves a need without a slot, those of more of a GPU
    and of more cores choose first too. Spares choose last. A share of a GPU is taken of one device.
    """
    in_order = _assign(needs, hosts, lambda need: (need.is_spare, need.accelerator is None))
    if None not in in_order:
        return in_order
    hardest_first = _assign(needs, hosts, _precedence)
    return in_order if None in hardest_first else hardest_first


def _assign(
    needs: Sequence[Need], hosts: Sequence[Host], precedence: Callable[[Need], Any]
) -> list[Slot | None]:
    free = [_FreeCapacity(host) for host in hosts]
    slots: list[Slot | None] = [None] * len(needs)
    for index in sorted(range(len(needs)), key=lambda index: precedence(needs[index])):
        for number, capacity in enumerate(free):
            if capacity.fits(needs[index]):
                slots[index] = Slot(number, capacity.take(needs[index]))
                break
    return slots


def lacks(needs: Sequence[Need], hosts: Sequence[Host]) -> list[str]:
    """One line for each worker without a slot, the workers that need an accelerator type first."""
    unmet = [need for need, slot in zip(needs, assign(needs, hosts), strict=True) if slot is None]
    unmet.sort(key=lambda need: need.accelerator is None)
    return list(dict.fromkeys(_line(need, needs, hosts) for need in unmet))


class _FreeCapacity:
    """What is left of a host."""

    def __init__(self, host: Host) -> None:
        self.host, self.cpu = host, host.cpu
        self.gpus = [1.0] * int(host.gpu)

    def fits(self, need: Need) -> bool:
        """Whether the host has what a worker needs."""
        has_gpu = not need.gpu or self._device(need) is not None
        return self.host.suits(need) and self.cpu >= need.cpu and has_gpu

    def take(self, need: Need) -> int | None:
        """Take what a worker needs and fits; the index of its GPU, None without one."""
        self.cpu -= need.cpu
        device = self._device(need) if need.gpu else None
        if device is not None:
            self.gpus[device] -= need.gpu
        return device

    def _device(self, need: Need) -> int | None:
        return next((i for i, left in enumerate(self.gpus) if left + 1e-9 >= need.gpu), None)


def _line(need: Need, needs: Sequence[Need], hosts: Sequence[Host]) -> str:
    offered = "; ".join(str(host) for host in hosts) or "there is no host"
    if need.is_spare:
        return (
            f"failure.spares: no capacity left for a spare of {need} beside the {len(needs) - 1} others "
            f"({offered}); add a host, or lower failure.spares"
        )
    fields = [f"students.{need.student}.{name}" for name in ("accelerator", "resources")]
    remedy = f"add a host, or change {fields[0] if need.accelerator else fields[1]}"
    if not any(host.suits(need) for host in hosts):
        return f"student {need.student!r}: no host offers {need} ({offered}); {remedy}"
    rest = [other for other in needs if other is not need]
    return (
        f"student {need.student!r}: no capacity left for {need} beside the {len(rest)} other workers "
        f"({offered}); {remedy}"
    )
