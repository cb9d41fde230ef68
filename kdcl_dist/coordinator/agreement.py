"""Whether all students mean the same run: the same data, versions and schedule."""

from __future__ import annotations

from collections.abc import Sequence

from kdcl_dist.errors import (
    DataError,
    KdclError,
    RunFolderError,
)
from kdcl_dist.membership.rendezvous import Hello
from kdcl_dist.run.run import (
    Run,
    read_record,
)

__all__ = []


def check_agreement(hellos: Sequence[Hello]) -> None:
    """See that all students mean the same run.

    Raises:
        DataError: they read different data. KdclError: they run different versions.
    """
    first = hellos[0]
    for hello in hellos[1:]:
        for name in sorted(first.versions):
            if hello.versions.get(name) != first.versions[name]:
                raise KdclError(
                    f"runs {name} {hello.versions.get(name)}, but {first.name!r} on {first.host} runs "
                    f"{first.versions[name]}: install the same versions on every host",
                    student=hello.name,
                    host=hello.host,
                )
        if (hello.data, hello.plan, hello.classes) != (first.data, first.plan, first.classes):
            raise DataError(
                f"reads other data than {first.name!r} on {first.host}: the fingerprints or sizes differ "
                "(`kdcl data inspect` shows them)",
                student=hello.name,
                host=hello.host,
            )


def check_same_data(run: Run, hello: Hello) -> None:
    """See that a resumed run reads the data it began with; raises `RunFolderError`."""
    before = read_record(run.folder).get("data")
    if run.start is not None and before is not None and before != hello.data:
        raise RunFolderError(
            f"{str(run.folder)!r} cannot be resumed with other data: the fingerprints differ "
            f"(was {before}, is {hello.data})"
        )
