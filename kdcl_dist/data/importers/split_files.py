"""The files of each split of a source: one file, or those in a folder that match a pattern."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from kdcl_dist.data.importers.presence import is_folder, is_there
from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.hidden import is_hidden

__all__ = ["identity_of", "split_files"]

#: Patterns of test files, where none is given; the first with a match counts.
TEST_PATTERNS = ("test*", "val*")
#: `{0000..0009}` or `{a,b}`, as in a shell.
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
#: Names that a pattern with braces may become.
MAX_NAMES = 100_000


def split_files(
    source: Path, train: str, test: str | None, suffixes: tuple[str, ...]
) -> dict[str, list[Path]]:
    """The files of "train", and of "test" if there are any.

    Args:
        source: a file, which is the training set; or a folder.
        train: pattern of the training set's files or folders in a folder, with braces or without.
        test: the same for the test set; None: the first of "test*" and "val*" with a match.
        suffixes: ends of the files' names.

    Raises:
        DataError: there is no such file, nothing matches, or a file is of both splits.
    """
    if not is_folder(source):
        if not is_there(source):
            remedy = "; give the folder, and the pattern as --train" if set("*?[{") & set(source.name) else ""
            raise DataError(f"{source}: no such file or folder{remedy}")
        return {"train": [source]}
    found = {"train": _matches(source, train, suffixes)}
    patterns = [test] if test else TEST_PATTERNS
    found["test"] = next(filter(None, (_matches(source, pattern, suffixes) for pattern in patterns)), [])
    for split, pattern in (("train", train), ("test", test)):
        if not found[split] and pattern is not None:
            kinds = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
            raise DataError(f"{source}: no {kinds} files match {pattern!r} (--{split})")
    if both := set(found["train"]) & set(found["test"]):
        raise DataError(f"{min(both)}: matches --train and --test both")
    return {split: files for split, files in found.items() if files}


def identity_of(source: Path, files: Iterable[Path], options: list[Any]) -> str:
    """A digest of options, and of the names, sizes and times of change of files."""
    stats = [(str(file.relative_to(source)), file.stat()) for file in files]
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps([*options, seen]).encode()).hexdigest()


def _matches(folder: Path, pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Files that match a pattern, and those in folders that match it: sorted, no hidden ones, none twice."""
    try:
        matches = [match for plain in _without_braces(pattern) for match in sorted(folder.glob(plain))]
        within = [
            file for match in matches for file in (sorted(match.iterdir()) if match.is_dir() else [match])
        ]
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{folder}: {pattern!r} matches no files: {one_line(error)}") from error
    named = [file for file in within if file.name.lower().endswith(suffixes)]
    return list(dict.fromkeys(file for file in named if not is_hidden(file.relative_to(folder))))


def _without_braces(pattern: str) -> list[str]:
    """The patterns that one with braces stands for, in their order; `ValueError` if they are too many."""
    before: list[str] = []
    patterns = [pattern]
    while patterns != before:
        before = patterns
        patterns = list(islice(chain.from_iterable(map(_once, before)), MAX_NAMES + 1))
        if len(patterns) > MAX_NAMES:
            raise ValueError(f"its braces stand for more than {MAX_NAMES:,} names")
    return patterns


def _once(pattern: str) -> Iterator[str]:
    """The pattern for each choice of its first braces that hold no others."""
    if found := BRACES.search(pattern):
        return (pattern[: found.start()] + choice + pattern[found.end() :] for choice in _choices(found))
    return iter((pattern,))


def _choices(braces: re.Match[str]) -> Iterator[str]:
    first, last, names = braces.groups()
    if names is not None:
        return iter(str(names).split(","))
    width = len(first) if first.startswith("0") or last.startswith("0") else 0
    return (str(number).zfill(width) for number in range(int(first), int(last) + 1))
