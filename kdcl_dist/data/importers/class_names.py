"""Class names that look the same and are not: two spellings of one text in Unicode."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from kdcl_dist.errors import DataError

__all__ = ["check_spelling"]


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
