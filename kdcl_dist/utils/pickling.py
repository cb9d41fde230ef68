"""Naming what cannot be pickled: Python's own message names a type, but not where the object is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

__all__ = ["unpicklable_part"]


def unpicklable_part(value: Any) -> str | None:
    """The innermost part of an object that cannot be pickled for another process, as `Class.attribute`.

    Returns:
        None if the whole object can be pickled.
    """
    return _innermost(value, type(value).__name__, set())


def _innermost(value: Any, name: str, seen: set[int]) -> str | None:
    if id(value) in seen or _can_be_pickled(value):
        return None
    seen.add(id(value))
    inner = (_innermost(part, where, seen) for where, part in _parts(value, name))
    return next((found for found in inner if found is not None), name)


def _can_be_pickled(value: Any) -> bool:
    try:
        ForkingPickler(io.BytesIO()).dump(value)
    except Exception:  # a user's class can raise anything
        return False
    return True


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What pickle takes of an object, with the name of each."""
    if isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{name}[{number}]", part) for number, part in enumerate(value))
    elif not isinstance(value, type):
        owner = type(value).__name__
        yield from ((f"{owner}.{key}", part) for key, part in _state(value).items())


def _state(value: Any) -> dict[str, Any]:
    """The attributes that pickle takes, or all where the class chooses otherwise."""
    try:
        state = value.__reduce_ex__(2)[2]
    except Exception:
        state = None
    return state if isinstance(state, dict) else dict(getattr(value, "__dict__", {}))
