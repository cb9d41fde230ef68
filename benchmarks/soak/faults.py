"""Which faults a soak injects: drawn from a seed, so that an interrupted soak goes on with the same."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["COORDINATOR", "ENDS_LAUNCHER", "SURVIVED", "Fault", "draw", "offer"]

COORDINATOR = "coordinator"
STEP_PHASES = ("data", "forward", "gather", "broadcast", "backward")
COORDINATOR_PHASES = ("gather", "ensemble", "broadcast", "record")
#: After them the launching process is gone, and `--resume` goes on.
ENDS_LAUNCHER = ("launcher killed", "disk full")
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
    "launcher killed": 3,
}
#: Phases that belong to the write of a checkpoint.
WRITES = ("torn", "disk slow", "disk fails", "disk full")


@dataclass(frozen=True)
class Fault:
    """One fault: process `who` meets it when it enters `phase` of `step` for the first time."""

    number: int
    who: str
    phase: str
    step: int
    how: str

    def marker(self, folder: Path) -> Path:
        """The file that exists once the fault has happened; its time is the fault's."""
        return folder / "met" / str(self.number)


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
        elif how == "launcher killed":
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
    lines = []
    for fault in faults:
        how = "mark" if fault.how == "launcher killed" else fault.how
        fields = asdict(fault) | {"how": how, "once": str(fault.marker(folder))}
        lines.append(json.dumps(fields | {"nth": 1, "after": "", "until": ""}))
    new = folder / "faults.new"
    new.write_text("\n".join(lines))
    new.replace(folder / "faults.jsonl")
