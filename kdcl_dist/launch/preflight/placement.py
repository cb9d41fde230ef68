"""Whether the hosts of a cluster have room for a cohort, and if not, who lacks what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kdcl_dist.config.recipe import Recipe

__all__ = ["ACCELERATOR", "Host", "Need", "lacks", "needs_of"]

#: Ray's label of a host's type of accelerator.
ACCELERATOR = "ray.io/accelerator-type"


@dataclass(frozen=True)
class Need:
    """What one worker takes: CPU cores, GPUs or a share of one, and the accelerator type, None for any."""

    student: str
    cpu: float
    gpu: float = 0.0
    accelerator: str | None = None

    def __str__(self) -> str:
        parts = [f"CPU {self.cpu:g}"] + [f"GPU {self.gpu:g}"] * bool(self.gpu)
        return ", ".join(parts) + (f" on a host with {self.accelerator}" if self.accelerator else "")


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


def needs_of(recipe: Recipe) -> list[Need]:
    """What each worker takes. Ray Train gives all the same resources, so that is the largest student's."""
    cpu = max(student.resources.cpu for student in recipe.students)
    gpu = max(student.resources.gpu for student in recipe.students)
    return [
        Need(student.name, cpu, gpu, student.accelerator)
        for student in recipe.students
        for _ in range(student.replicas)
    ]


def lacks(needs: Sequence[Need], hosts: Sequence[Host]) -> list[str]:
    """For each worker that finds no place, one line; those that ask for an accelerator type choose first."""
    rooms = [_Room(host) for host in hosts]
    lines = []
    for need in sorted(needs, key=lambda need: need.accelerator is None):
        if not any(room.take(need) for room in rooms):
            lines.append(_line(need, needs, hosts))
    return list(dict.fromkeys(lines))


class _Room:
    """What is left of a host; a share of a GPU is taken of one device."""

    def __init__(self, host: Host) -> None:
        self.host, self.cpu = host, host.cpu
        self.gpus = [1.0] * int(host.gpu)

    def take(self, need: Need) -> bool:
        """Take what a worker needs if it is there."""
        device = next((i for i, left in enumerate(self.gpus) if left + 1e-9 >= need.gpu), None)
        if not self.host.suits(need) or self.cpu < need.cpu or (need.gpu and device is None):
            return False
        self.cpu -= need.cpu
        if need.gpu and device is not None:
            self.gpus[device] -= need.gpu
        return True


def _line(need: Need, needs: Sequence[Need], hosts: Sequence[Host]) -> str:
    offered = "; ".join(str(host) for host in hosts) or "there is no host"
    fields = [f"students.{need.student}.{name}" for name in ("accelerator", "resources")]
    remedy = f"add a host, or change {fields[0] if need.accelerator else fields[1]}"
    if not any(host.suits(need) for host in hosts):
        return f"student {need.student!r}: no host offers {need} ({offered}); {remedy}"
    rest = [other for other in needs if other is not need]
    return (
        f"student {need.student!r}: no room left for {need} beside the {len(rest)} other workers "
        f"({offered}); {remedy}"
    )
