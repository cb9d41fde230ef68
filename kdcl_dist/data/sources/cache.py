"""The user's cache of what was found in data sets: safe for several processes at once, and never unpickled.

An entry is one file, written under another name and then renamed, so that a reader finds it whole or not at
all. Its name has the digest of its key and that of the source's content: of one key only the newest stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdcl_dist.errors import DataError, one_line
from kdcl_dist.version import __version__

__all__ = ["cache_folder", "digest_of", "entry", "replaced"]

#: Characters of a digest in a file's name.
DIGITS = 24


def cache_folder() -> Path:
    """The folder of the cache: `$XDG_CACHE_HOME/kdcl`, or `~/.cache/kdcl`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path("~/.cache").expanduser()) / "kdcl"


def digest_of(*parts: Any) -> str:
    """A SHA-256 over values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def entry(key: str, content: str, suffix: str) -> Path:
    """The path of an entry, which need not exist.

    Args:
        key: what is kept, and for which source: a new entry of a key replaces the old one.
        content: a digest of the source's content.
        suffix: end of the file's name.
    """
    name = digest_of(key, __version__)[:DIGITS], digest_of(content)[:DIGITS]
    return cache_folder() / f"{'-'.join(name)}{suffix}"


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write an entry to, which becomes the entry at the end; older ones of its key are deleted.

    Raises:
        DataError: the cache cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
        for old in path.parent.glob(f"{path.name[:DIGITS]}-*{path.suffix}"):
            if old != path:
                old.unlink(missing_ok=True)  # who has mapped it keeps it
    except OSError as error:
        raise DataError(
            f"{path.parent}: the cache cannot be written: {one_line(error)}; name another folder in the "
            "environment variable XDG_CACHE_HOME"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
