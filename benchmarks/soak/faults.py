"""Which faults a soak injects: drawn from a seed, so that an interrupted soak goes on with the same."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = [
    "COORDINATOR",
    "ENDS_LAUNCHER",
    "LAUNCHER_KILLED",
    "LAUNCHER_STOPPED",
    "SURVIVED",
    "Fault",
    "draw",
    "launcher_id",
    "offer",
]

COORDINATOR = "coordinator"
#: Faults of the launching process, by another one as it enters a phase.
LAUNCHER_KILLED, LAUNCHER_STOPPED = "launcher killed", "launcher stopped"
STEP_PHASES = ("data", "forward", "gather", "broadcast", "backward")
COORDINATOR_PHASES = ("gather", "ensemble", "broadcast", "record")
#: After them the launching process is gone, and `--resume` goes on.
ENDS_LAUNCHER = (LAUNCHER_KILLED, "disk full")
#: They cost time only: a write is repeated, and nobody fails.
SURVIVED = ("disk slow", "disk fails")
#: How a fault happens, and in how many of 100 faults. A stopped process costs seconds until it is noticed.
SHARES = {
    "kill": 60,
    "exception": 10,
    "cut": 8,
    "cut off": 4,
    "nan": 5,
    "torn": 3,
    "disk slow": 2,
    "disk fails": 2,
    "disk full": 1,
    "stop": 2,
    LAUNCHER_KILLED: 3,
}
#: Phases that belong to the write of a checkpoint.
WRITES = ("torn", "disk slow", "disk fails", "disk full")


@dataclass(frozen=True)
class Fault:
    """One fault: process `who` meets it when it enters `phase` of `step` for the first time.

    Attributes:
        number: of the fault.
        who, phase, step, how: as above.
        after: number of the fault that must have happened before; None: of none.
    """

    number: int
    who: str
    phase: str
    step: int
    how: str
    after: int | None = None

    @property
    def role(self) -> str:
        """What kind of process has the fault: student, replica, coordinator or launcher."""
        if self.how in (LAUNCHER_KILLED, LAUNCHER_STOPPED):
            return "launcher"
        if self.who == COORDINATOR:
            return COORDINATOR
        return "replica" if "/" in self.who else "student"

    def marker(self, folder: Path) -> Path:
        """The file that exists once the fault has happened; its time is the fault's."""
        return _marker(folder, self.number)


def _marker(folder: Path, number: int) -> Path:
    return folder / "met" / str(number)


def draw(count: int, seed: int, workers: list[str], steps_per_epoch: int) -> list[Fault]:
    """One fault an epoch, at a random step of it, by random processes in random ways.

    Args:
        count: of faults, which is also that of epochs.
        seed: of the draw.
        workers: processes of the students, replicas included.
        steps_per_epoch: of the run.
    """
    dice, faults = random.Random(seed), list[Fault]()
    for number in range(count):
        how = dice.choices(list(SHARES), list(SHARES.values()))[0]
        who = COORDINATOR if how == "disk full" or dice.random() < 0.25 else dice.choice(workers)
        if how == "nan":
            who, phase = dice.choice([name for name in workers if "/" not in name]), "forward"
        elif how == LAUNCHER_KILLED:
            phase = "gather"
        elif how in WRITES or dice.random() < 0.1:
            phase = "checkpoint"
        else:
            phase = dice.choice(COORDINATOR_PHASES if who == COORDINATOR else STEP_PHASES)
        within = steps_per_epoch if phase == "checkpoint" else dice.randrange(steps_per_epoch)
        faults.append(Fault(number, who, phase, number * steps_per_epoch + within, how))
    return faults


def offer(faults: Iterable[Fault], folder: Path) -> None:
    """Write the faults that may come next, where the processes of the run look for them."""
    new = folder / "faults.new"
    new.write_text("\n".join(json.dumps(_line(fault, folder)) for fault in faults))
    new.replace(folder / "faults.jsonl")


def _line(fault: Fault, folder: Path) -> dict[str, object]:
    """A fault as `tests/support/inject` reads it."""
    after = "" if fault.after is None else str(_marker(folder, fault.after))
    until = str(launcher_id(folder)) if fault.role == "launcher" else ""
    return asdict(fault) | {"once": str(fault.marker(folder)), "after": after, "nth": 1, "until": until}


def launcher_id(folder: Path) -> Path:
    """The file with the id of the launching process."""
    return folder / "launcher.pid"
