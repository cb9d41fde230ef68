"""Whether all students mean the same run: the same data, versions and schedule."""

from __future__ import annotations

from collections.abc import Sequence

from kdcl_dist.errors import (
    DataError,
    KdclError,
    RunFolderError,
)
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

__all__ = ["check_agreement", "check_same_data"]


def check_agreement(infos: Sequence[WorkerInfo]) -> None:
    """See that all students mean the same run.

    Raises:
        DataError: they read different data. KdclError: they run different versions.
    """
    first = infos[0]
    for info in infos[1:]:
        for name in sorted(first.versions):
            if info.versions.get(name) != first.versions[name]:
                raise KdclError(
                    f"runs {name} {info.versions.get(name)}, but {first.name!r} on {first.host} runs "
                    f"{first.versions[name]}: install the same versions on every host",
                    student=info.name,
                    host=info.host,
                )
        if (info.data, info.schedule, info.classes) != (first.data, first.schedule, first.classes):
            raise DataError(
                f"reads other data than {first.name!r} on {first.host}: the fingerprints or sizes differ "
                "(`kdcl data inspect` shows them)",
                student=info.name,
                host=info.host,
            )


def check_same_data(run: Run, info: WorkerInfo) -> None:
    """See that a resumed run reads the data it began with; raises `RunFolderError`."""
    before = read_record(run.folder).get("data")
    if run.start is not None and before is not None and before != info.data:
        raise RunFolderError(
            f"{str(run.folder)!r} cannot be resumed with other data: the fingerprints differ "
            f"(was {before}, is {info.data})"
        )
