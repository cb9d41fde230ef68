"""run.json, the record of a run: state, owner, placement, data fingerprints, results, causes of failures."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from kdcl_dist.errors import KdclError, RunFolderError, StorageError, from_dict
from kdcl_dist.run.record_fields import parse_record
from kdcl_dist.run.run import Run, write_recipe
from kdcl_dist.run.storage import Folder

__all__ = [
    "check_owner",
    "new_record",
    "next_generation",
    "past_failures",
    "read_record",
    "record_failure",
    "record_interruption",
    "record_survival",
    "recorded_end",
    "recorded_failure",
    "restore_deleted",
    "scores_of",
    "update_record",
]

#: Seconds for which `check_owner` tries to read the record; the students wait meanwhile.
OWNER_S = 3.0
#: Bytes of the largest run.json that is read; most have some thousand.
MAX_BYTES = 10_000_000
#: One thread at a time reads the record to write it.
_updating = threading.Lock()


def read_record(folder: Folder) -> dict[str, Any]:
    """The content of run.json; empty when there is none.

    Raises:
        RunFolderError: it is no regular file, no JSON, or a field has another type.
    """
    try:
        return parse_record(folder.read("run.json", MAX_BYTES))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunFolderError(f"{folder}/run.json is damaged ({error}); delete it") from None


def scores_of(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The final test results in a record, by student: loss, top1, top5; empty if there are none."""
    results = record.get("results") or {}
    return {name: dict(values) for name, values in results.items() if "loss" in values}


def update_record(folder: Folder, **changes: Any) -> None:
    """Write fields of run.json, keeping the others.

    Raises:
        StorageError: the storage refuses, or the record that it has is damaged: a running process treats both
            alike, and the damage must not hide the cause of a failure.
    """
    try:
        with _updating:
            new_record(folder, **read_record(folder) | changes)
    except RunFolderError as error:
        raise StorageError(error.message) from error


def new_record(folder: Folder, **fields: Any) -> None:
    """Write run.json anew; raises `StorageError` when the storage refuses."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    folder.write("run.json", json.dumps(fields | {"updated": now}, indent=1).encode())


def check_owner(run: Run) -> None:
    """Check that no other process has resumed the run meanwhile: the latest start owns the folder.

    Raises:
        RunFolderError: another start owns it.
    """
    try:
        owner = read_record(run.folder.with_limit(OWNER_S)).get("owner", run.id)
    except (StorageError, RunFolderError):  # neither silence nor damage is a sign of another process
        return
    if owner != run.id:
        raise RunFolderError(
            f"{str(run.folder)!r} was resumed by another process ({owner}), which goes on; this one ends here"
        )


def restore_deleted(run: Run, record: Mapping[str, Any]) -> list[str]:
    """Write recipe.yaml and run.json again where they were deleted; returns the names of those written.

    Args:
        run: the run.
        record: the content for run.json.
    """
    gone = [name for name in ("recipe.yaml", "run.json") if not run.folder.exists(name)]
    if "recipe.yaml" in gone:
        write_recipe(run.folder, run.recipe)
    if "run.json" in gone:
        update_record(run.folder, **record)
    return gone


def record_failure(run: Run, cause: KdclError) -> None:
    """Record the first cause of a failure, unless another start owns the run.

    Errors of the storage are suppressed: they must not hide the cause.
    """
    with contextlib.suppress(Exception):
        check_owner(run)
        update_record(run.folder, state="failed", cause=cause.to_dict())


def record_interruption(run: Run) -> None:
    """Record that a run was ended from outside; as `record_failure`."""
    with contextlib.suppress(Exception):
        check_owner(run)
        update_record(run.folder, state="interrupted")


def recorded_failure(run: Run) -> KdclError | None:
    """The first cause that was recorded since this start of the run, if any."""
    try:
        record = read_record(run.folder)
    except (StorageError, RunFolderError):  # the caller knows a cause of its own, which counts more
        return None
    return from_dict(record["cause"]) if record.get("state") == "failed" and record.get("cause") else None


def recorded_end(run: Run) -> bool | None:
    """How this start of the run has ended by its record, whatever failed afterwards.

    Returns:
        True where it is complete, False where it was stopped after a checkpoint; None without such a record.
    """
    try:
        ends = {"finished": True, "interrupted": False}
        return ends.get(read_record(run.folder).get("state", ""))
    except (StorageError, RunFolderError):
        return None


def record_survival(run: Run, failures: Sequence[KdclError]) -> None:
    """Record all failures that this start of the run has survived so far."""
    update_record(run.folder, failures={"run": run.id, "causes": [failure.to_dict() for failure in failures]})


def past_failures(run: Run) -> list[KdclError]:
    """The failures that this start of the run has survived so far, as recorded."""
    failures = read_record(run.folder).get("failures", {})
    return [from_dict(cause) for cause in failures.get("causes", [])] if failures.get("run") == run.id else []


def next_generation(run: Run) -> int:
    """The number of the exchange group after all that this start of the run had."""
    generation = read_record(run.folder).get("generation", {})
    return int(generation["number"]) + 1 if generation.get("run") == run.id else 0
