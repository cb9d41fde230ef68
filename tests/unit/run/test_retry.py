"""Retries of temporary errors, within a limit."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import pytest

from kdcl_dist.errors import StorageError
from kdcl_dist.run.retry import retry


def failing(*numbers: int) -> Callable[[], str]:
    """Fails with these error numbers, then works."""
    left = iter(numbers)

    def operation() -> str:
        if (number := next(left, None)) is not None:
            raise OSError(number, os.strerror(number))
        return "done"

    return operation


def test_what_passes_on_nfs_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert retry(failing(errno.ESTALE, errno.EIO, errno.ETIMEDOUT), "it fails", 30) == "done"
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_what_stays_is_told_at_once(number: int) -> None:
    with pytest.raises(StorageError, match="a cannot be written to b: "):
        retry(failing(number), "a cannot be written to b", 30)
    with pytest.raises(FileNotFoundError):
        retry(failing(errno.ENOENT), "a cannot be read from b", 30)


def test_the_limit_holds() -> None:
    with pytest.raises(StorageError, match=r"tried 2 times in 0\.\d s \(limits\.storage_s\), last OSError"):
        retry(failing(*[errno.EIO] * 100), "it fails", 0.5)
