"""A wait for several transfers of a group, whose limit is that of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from kdcl_dist.membership.failure_detector import timed_out

__all__ = ["Unfinished", "await_each"]


class Unfinished(RuntimeError):
    """The limit ended before the transfers with some ranks of the group were done.

    Args:
        indices: these ranks.
        message: of the first transfer's exception.
    """

    def __init__(self, indices: Sequence[int], message: str) -> None:
        super().__init__(message)
        self.indices = indices


def await_each(
    works: Sequence[Any],
    limit: timedelta,
    done: Callable[[int], object] | None = None,
    *,
    first: int = 0,
) -> None:
    """Wait for the transfers with ranks `first`, `first` + 1, ..., and call `done` after each.

    When the limit ends, gloo closes the connections of the group. What was transferred by then is kept.

    Args:
        works: the transfers.
        limit: of all.
        done: takes the index of each in `works`.
        first: rank of the first.

    Raises:
        Unfinished: the limit ended before some of them.
        RuntimeError: a connection broke.
    """
    deadline, indices, message = time.monotonic() + limit.total_seconds(), list[int](), ""
    for index, work in enumerate(works):
        try:
            work.wait(timedelta(seconds=max(0.001, deadline - time.monotonic())))
        except RuntimeError as error:
            if not indices and not timed_out(error):
                raise
            indices.append(first + index)
            message = message or str(error)
            continue
        if done is not None:
            done(index)
    if indices:
        raise Unfinished(indices, message)
