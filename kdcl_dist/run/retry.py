"""Retrying operations that a storage refuses temporarily, within a limit."""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from kdcl_dist.errors import StorageError, one_line

__all__ = ["is_transient", "retry"]

Result = TypeVar("Result")

#: Seconds of the first and of the longest pause; each pause is about twice as long as the previous one.
PAUSES_S = (0.2, 8.0)
#: Temporary errors of a local disk or of NFS; NFS reports ESTALE and EIO while its server restarts.
TRANSIENT = {errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH}
#: Texts of permanent errors of object stores, and the remedy for each.
PERMANENT = {
    r"NO_SUCH_BUCKET|Bucket '.*' not found": "make the bucket, or choose another with --storage",
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|PERMISSION_DENIED|UNAUTHENTICATED": (
        "give this host credentials that may read, write and delete there"
    ),
    r"RESOURCE_NOT_FOUND|HTTP status (3\d\d|4(?!08|29)\d\d)|INVALID_|NOT_FOUND|FAILED_PRECONDITION": (
        "see bucket, region and endpoint_override in the URI"
    ),
}
#: Permanent errors of file systems.
PERMANENT_TYPES = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)


def is_transient(error: BaseException) -> bool:
    """Whether an error of a file system may be temporary."""
    if not isinstance(error, OSError) or isinstance(error, PERMANENT_TYPES):
        return False
    if error.errno is not None:
        return error.errno in TRANSIENT
    return _remedy(error) is None  # object stores give a text and no number


def retry(operation: Callable[[], Result], what: str, limit_s: float) -> Result:
    """Run an operation on a storage, and repeat it while it fails with temporary errors.

    Args:
        operation: must be idempotent.
        what: the problem, naming file and storage: "run.json cannot be written to s3://bucket/runs".
        limit_s: seconds after which no further attempt begins.

    Raises:
        FileNotFoundError: from the operation.
        StorageError: the error is permanent, or the operation still failed at the limit.
    """
    began, pause_s, tries = time.monotonic(), PAUSES_S[0], 0
    while True:
        tries += 1
        try:
            return operation()
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            spent_s = time.monotonic() - began
            if not is_transient(error):
                remedy = _remedy(error)
                raise StorageError(
                    f"{what}: {one_line(error)}" + (f"; {remedy}" if remedy else "")
                ) from error
            if spent_s + pause_s > limit_s:
                tried = f"tried {tries} times in {spent_s:.1f} s (limits.storage_s)"
                raise StorageError(f"{what}: {tried}, last {one_line(error)}") from error
        time.sleep(
            pause_s * random.Random().uniform(0.7, 1.0)
        )  # the processes of a cohort shall not retry in lockstep
        pause_s = min(2 * pause_s, PAUSES_S[1])


def _remedy(error: BaseException) -> str | None:
    return next((text for pattern, text in PERMANENT.items() if re.search(pattern, str(error))), None)
