"""Hidden files, such as `.DS_Store` and the twin `._x.png` that macOS writes beside x.png."""

from __future__ import annotations

from pathlib import PurePath

__all__ = ["is_hidden"]


def is_hidden(path: PurePath | str) -> bool:
    """Whether a name, or a part of a relative path, begins with a dot."""
    return any(part.startswith(".") and part != ".." for part in str(path).split("/"))
