"""Class names: read from a file, and checked for names that look the same and are not."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.files import read_regular

__all__ = ["check_spelling", "read_class_names"]

#: Bytes of the largest file of class names.
MAX_BYTES = 10_000_000


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in a text file, a name a line, in the order of the labels.

    Raises:
        DataError: it cannot be read, is not UTF-8, or has an empty line or a name twice.
    """
    try:
        names = read_regular(path, MAX_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as class names: {one_line(error)}") from error
    names = [name.strip() for name in names]
    if not names or not all(names):
        line = names.index("") + 1 if names else 1
        raise DataError(f"{path}: line {line} is empty; each line is the name of a class")
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if lines.setdefault(name, line) != line:
            raise DataError(f"{path}: lines {lines[name]} and {line} both name the class {name!r}")
    check_spelling(names, str(path))
    return tuple(names)


def check_spelling(names: Iterable[str], where: str) -> None:
    """Check that no two different names are the same text in Unicode's normal form.

    macOS decomposes letters (e and an accent), while other systems keep them composed.

    Raises:
        DataError: two names are; the message shows both with escapes.
    """
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise DataError(
                f"{where}: the classes {other!a} and {name!a} are both {name!r}, in two spellings of Unicode "
                "(NFC and NFD); give them one spelling, or different names"
            )
