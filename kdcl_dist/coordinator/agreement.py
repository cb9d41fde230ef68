"""Whether all workers agree on the run: its data, versions and schedule; and with the run before."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import RunSchedule
from kdcl_dist.coordinator.stored_members import StoredMembers
from kdcl_dist.errors import (
    DataError,
    KdclError,
    RunFolderError,
)
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

__all__ = ["changed_devices", "check_agreement", "check_same_data", "check_stored", "schedule_of"]

#: The fields of a schedule that follow from the cohort.
OF_COHORT = ("changes", "test_passes")
#: Which of its host's GPUs a device is, at the end of its text; see `kdcl_dist.utils.devices`.
NUMBER = re.compile(r" \((GPU|MIG)[^()]*\)$")


def check_agreement(workers: Sequence[WorkerInfo], assistants: Sequence[WorkerInfo] = ()) -> None:
    """See that all workers agree on versions, data and schedule, and the assistants on versions.

    Args:
        workers: what each worker reports of itself; errors compare each with the first.
        assistants: what the coordinator's assistants report of themselves; they read no data.

    Raises:
        DataError: a worker reads other data.
        KdclError: a worker runs other versions.
    """
    first = workers[0]
    for worker in [*workers[1:], *assistants]:
        for name in sorted(first.versions):
            if worker.versions.get(name) != first.versions[name]:
                raise KdclError(
                    f"runs {name} {worker.versions.get(name)}, but {first.name!r} on {first.host} runs "
                    f"{first.versions[name]}: install the same versions on every host",
                    student=worker.name,
                    host=worker.host,
                )
    for worker in workers[1:]:
        if _read_by(worker) != _read_by(first):
            raise DataError(
                f"reads other data than {first.name!r} on {first.host}: the fingerprints or sizes differ "
                "(`kdcl data inspect` shows them)",
                student=worker.name,
                host=worker.host,
            )


def _read_by(worker: WorkerInfo) -> tuple[object, ...]:
    """What a worker reads, whatever it knows of the cohort: it may have begun before the last change."""
    sizes = {name: size for name, size in worker.schedule.items() if name not in OF_COHORT}
    return worker.data, sizes, worker.classes


def schedule_of(recipe: Recipe, worker: WorkerInfo) -> RunSchedule:
    """The schedule of a run's rounds: the sizes that a worker reports, for the cohort of the recipe."""
    return RunSchedule.of(worker.schedule).for_cohort(recipe.changes, averages=bool(recipe.averaged))


def check_same_data(run: Run, worker: WorkerInfo) -> None:
    """See that a resumed run reads the data that it began with.

    Raises:
        RunFolderError: the data are others.
    """
    before = read_record(run.folder).get("data")
    if run.start is not None and before is not None and before != worker.data:
        raise RunFolderError(
            f"{str(run.folder)!r} cannot be resumed with other data: the fingerprints differ "
            f"(was {before}, is {worker.data})"
        )


def check_stored(
    run: Run, stored: StoredMembers, worker: WorkerInfo, assistants: Sequence[WorkerInfo] = ()
) -> None:
    """See that files of logits are of the data that a worker reads, and those with which the run began.

    Args:
        run: the run.
        stored: the coordinator's files.
        worker: what a worker reports of itself.
        assistants: what the coordinator's assistants report of themselves, and of the files on their hosts.

    Raises:
        DataError: a file is of other data, or another one than an assistant's.
        RunFolderError: a file is another one.
    """
    stored.check(run.recipe, worker.data["train"], worker.classes)
    before = read_record(run.folder).get("stored", {})
    for name, found in stored.fingerprints.items():
        if run.start is not None and before.get(name, found) != found:
            raise RunFolderError(
                f"{str(run.folder)!r} cannot be resumed with other logits of {name!r}: the fingerprint "
                f"was {before[name][:12]}, is {found[:12]}"
            )
        for each in assistants:
            if each.data.get(name) != found:
                raise DataError(
                    f"reads other logits of {name!r} than the coordinator: copy "
                    f"{run.recipe.stored[run.recipe.names.index(name)]!r} to every host",
                    student=each.name,
                    host=each.host,
                )


def changed_devices(run: Run, workers: Sequence[WorkerInfo]) -> list[str]:
    """`worker: old -> new` for each worker whose kind of device is not the one that the run has recorded."""
    before = read_record(run.folder).get("placement", {})
    kinds = [
        (worker.name, NUMBER.sub("", before[worker.name].get("device", worker.device)), worker.device)
        for worker in workers
        if worker.name in before
    ]
    return [f"{name}: {old} -> {new}" for name, old, new in kinds if old != NUMBER.sub("", new)]
