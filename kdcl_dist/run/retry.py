"""Trying again what a storage refuses for a moment, within a limit."""

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

#: Seconds of the first pause, and of the longest; each is about twice the one before.
PAUSES_S = (0.2, 8.0)
#: Errors of a local disk or of NFS that can pass; NFS says ESTALE and EIO while its server restarts.
PASSING = {errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH}
#: What object stores say when trying again is of no use, and what to do then.
LASTING = {
    r"NO_SUCH_BUCKET|Bucket '.*' not found": "make the bucket, or choose another with --storage",
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|PERMISSION_DENIED|UNAUTHENTICATED": (
        "give this host credentials that may read, write and delete there"
    ),
    r"RESOURCE_NOT_FOUND|HTTP status (3\d\d|4(?!08|29)\d\d)|INVALID_|NOT_FOUND|FAILED_PRECONDITION": (
        "see bucket, region and endpoint_override in the URI"
    ),
}
GRAVE = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)


def is_transient(error: BaseException) -> bool:
    """Whether an error of a file system may be gone at the next try."""
    if not isinstance(error, OSError) or isinstance(error, GRAVE):
        return False
    if error.errno is not None:
        return error.errno in PASSING
    return _remedy(error) is None  # object stores give no number, only a text


def retry(operation: Callable[[], Result], what: str, limit_s: float) -> Result:
    """Do something with a storage, again and again while it fails for reasons that can pass.

    Args:
        operation: what to do; doing it twice must be the same as doing it once.
        what: names file and storage, such as "run.json cannot be written to s3://bucket/runs".
        limit_s: seconds after which no other try begins.

    Raises:
        FileNotFoundError: as the operation does.
        StorageError: it still failed at the limit, or there is no hope.
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
        time.sleep(pause_s * random.Random().uniform(0.7, 1.0))  # a cohort's writers shall not stay in step
        pause_s = min(2 * pause_s, PAUSES_S[1])


def _remedy(error: BaseException) -> str | None:
    return next((text for pattern, text in LASTING.items() if re.search(pattern, str(error))), None)
