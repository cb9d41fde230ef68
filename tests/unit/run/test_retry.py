"""Retries of temporary errors, within a limit."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import pytest

from kdcl_dist.errors import StorageError
from kdcl_dist.run.retry import is_transient, retry


def failing(*numbers: int) -> Callable[[], str]:
    """Fails with these error numbers, then works."""
    left = iter(numbers)

    def operation() -> str:
        if (number := next(left, None)) is not None:
            raise OSError(number, os.strerror(number))
        return "done"

    return operation


def test_temporary_errors_of_nfs_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert retry(failing(errno.ESTALE, errno.EIO, errno.ETIMEDOUT), "it fails", 30) == "done"
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_permanent_errors_are_raised_at_once(number: int) -> None:
    with pytest.raises(StorageError, match="a cannot be written to b: "):
        retry(failing(number), "a cannot be written to b", 30)
    with pytest.raises(FileNotFoundError):
        retry(failing(errno.ENOENT), "a cannot be read from b", 30)


def test_the_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(time, "sleep", lambda pause_s: now_s.append(now_s.pop() + pause_s))
    with pytest.raises(StorageError, match=r"tried 2 times in 0\.\d s \(limits\.storage_s\), last OSError"):
        retry(failing(*[errno.EIO] * 100), "it fails", 0.5)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("When writing: AWS Error NO_SUCH_BUCKET during PutObject", "make the bucket"),
        ("AWS Error ACCESS_DENIED during PutObject", "give this host credentials"),
        ("google::cloud::Status(PERMISSION_DENIED: no)", "give this host credentials"),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject", "see bucket, region and endpoint_override"),
        ("AWS Error UNKNOWN (HTTP status 404) during HeadObject", "see bucket, region and endpoint_override"),
    ],
)
def test_permanent_errors_of_object_stores_have_a_remedy(text: str, remedy: str) -> None:
    def operation() -> None:
        raise OSError(text)

    assert not is_transient(OSError(text))
    with pytest.raises(StorageError, match=f"^it fails: .*; {remedy}"):
        retry(operation, "it fails", 30)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_busy_object_stores_are_transient(status: int) -> None:
    assert is_transient(OSError(f"AWS Error UNKNOWN (HTTP status {status}) during PutObject"))
    assert is_transient(OSError("AWS Error SLOW_DOWN during PutObject"))


@pytest.mark.parametrize(
    "error", [ValueError("no"), FileNotFoundError("no"), KeyError("no"), PermissionError("no")]
)
def test_other_errors_are_permanent(error: Exception) -> None:
    assert not is_transient(error)
