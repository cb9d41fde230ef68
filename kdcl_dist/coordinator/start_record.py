"""What run.json keeps of the start of a generation: where its students are, and who was there before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kdcl_dist.coordinator.roster import Roster
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run

__all__ = ["Placement", "placement_of", "record_start"]

#: By worker its host, process and device.
Placement = dict[str, dict[str, Any]]
#: The fields of `WorkerInfo` that the record has.
FIELDS = ("host", "pid", "device", "parameters", "peak_memory", "cores")


def placement_of(workers: Sequence[WorkerInfo]) -> Placement:
    """Where the workers of a generation are, by what they report of themselves."""
    return {worker.name: {field: asdict(worker)[field] for field in FIELDS} for worker in workers}


def record_start(
    run: Run,
    roster: Roster,
    workers: Sequence[WorkerInfo],
    stored: Mapping[str, str],
    epoch: int,
    steps_per_epoch: int,
) -> None:
    """Record the start of a generation.

    Args:
        run: the run, of this generation.
        roster: its students.
        workers: what each present worker reports of itself.
        stored: fingerprints of the files of logits, by the members' names.
        epoch: of its first round, from 0.
        steps_per_epoch: of the run.

    Raises:
        StorageError: the storage refuses.
    """
    history, spares = roster.history(epoch, steps_per_epoch), _spares(run, workers)
    update_record(
        run.folder,
        state="running",
        data=workers[0].data,
        placement=_of_leavers(run, epoch) | placement_of(workers),
        generation={"run": run.id, "number": run.generation},
        absences=roster.absences.found,
        stored=dict(stored),
        **({"cohort": history} if history else {}),
        **({"spares": spares} if spares else {}),
        **({"class_names": names} if (names := workers[0].class_names) else {}),
    )


def _spares(run: Run, workers: Sequence[WorkerInfo]) -> list[dict[str, str]]:
    """The spare workers of Ray that took over in this run: those recorded, and those that are new now."""
    now = [
        {"student": worker.name, "at": worker.took_over, "host": worker.host}
        for worker in workers
        if worker.took_over
    ]
    before: list[dict[str, str]] = read_record(run.folder).get("spares", []) if now else []
    return [*before, *(spare for spare in now if spare not in before)]


def _of_leavers(run: Run, epoch: int) -> Placement:
    """The recorded placement of students that have left by an epoch."""
    students = run.recipe.students
    left = {worker.name for worker in run.recipe.workers if students[worker.student].has_left(epoch)}
    before = read_record(run.folder).get("placement", {}) if left else {}
    return {name: place for name, place in before.items() if name in left}
