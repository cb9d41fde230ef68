"""The finished work of an import: one line of JSON for its source, its statistics and each shard."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from kdcl_dist.data.writer import content_digest
from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.files import open_regular

__all__ = ["Journal", "Reject", "Shard"]

NAME = "import.jsonl"

#: Label, name and reason of a rejected image.
Reject = tuple[int, str, str]


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        name: its path in the data set, "train/shard-00000.arrow".
        digest: its `content_digest`; None where no image was accepted and so no file was written.
        rejected: its rejected images.
    """

    name: str
    digest: str | None
    rejected: list[Reject]


@dataclass
class Journal:
    """The journal in a folder; `open` reads it or begins a new one.

    A context manager: until its end, no other import can open the journal.
    """

    folder: Path
    lock: BinaryIO
    statistics: dict[str, list[float]] | None = None
    shards: dict[str, Shard] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, identity: dict[str, Any]) -> Journal:
        """Read the journal of a folder, or begin a new one.

        Args:
            folder: made if missing.
            identity: identifies the source and the options; must equal that of the journal.

        Raises:
            DataError: the folder holds something else, cannot be written, or another import runs in it.
        """
        first = {"import": identity}
        try:
            if not folder.exists():
                _begin(folder, first)
            lock = _locked(folder)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: cannot be written: {one_line(error)}") from error
        journal = cls(folder, lock)
        try:
            journal._read(first)
        except BaseException:
            lock.close()
            raise
        return journal

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.close()

    def finished(self, name: str) -> Shard | None:
        """The shard of this name if it is finished and its file is intact, else None."""
        shard = self.shards.get(name)
        if shard is None or shard.digest is None:
            return shard
        try:
            return shard if content_digest(self.folder / name) == shard.digest else None
        except DataError:
            return None

    def add_statistics(self, statistics: dict[str, list[float]]) -> None:
        """Record the statistics."""
        self.statistics = statistics
        self._add({"statistics": statistics})

    def add_shard(self, shard: Shard) -> None:
        """Record a finished shard."""
        self.shards[shard.name] = shard
        self._add(vars(shard))

    def remove(self, folder: Path) -> None:
        """Delete the journal of a complete data set, which was moved to `folder`."""
        try:
            (folder / NAME).unlink()
        except OSError as error:
            raise DataError(
                f"{folder / NAME}: cannot be deleted: {one_line(error)}; the data set is complete: delete it"
            ) from error

    def _add(self, line: dict[str, Any]) -> None:
        try:
            _append(self.folder / NAME, line)
        except OSError as error:
            raise DataError(
                f"{self.folder / NAME}: cannot be written: {one_line(error)}; once it can, the same command "
                "goes on from there"
            ) from error

    def _read(self, first: dict[str, Any]) -> None:
        try:
            lines = self._lines()
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: cannot be written: {one_line(error)}") from error
        if not lines or lines[0] != first:
            raise _other(self.folder)
        for line in lines[1:]:
            if "statistics" in line:
                self.statistics = line["statistics"]
            else:
                rejected = [(label, name, reason) for label, name, reason in line["rejected"]]
                self.shards[line["name"]] = Shard(line["name"], line["digest"], rejected)

    def _lines(self) -> list[dict[str, Any]]:
        """All complete lines; deletes a truncated last line."""
        path = self.folder / NAME
        with open_regular(path) as file:
            text = file.read().decode("ascii", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="ascii", errors="replace")
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except (ValueError, RecursionError):
            return []


def _begin(folder: Path, line: dict[str, Any]) -> None:
    """Make a folder with a journal of one line, or leave nothing: half of a line would be no journal."""
    folder.mkdir(parents=True)
    try:
        _append(folder / NAME, line)
    except BaseException:
        with suppress(OSError):
            (folder / NAME).unlink(missing_ok=True)
            folder.rmdir()
        raise


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _locked(folder: Path) -> BinaryIO:
    """The open journal of a folder; while it is open, none but this process has the lock on it."""
    try:
        open_regular(folder / NAME).close()
        file = (folder / NAME).open("ab")  # NFS locks only what is open for writing
    except FileNotFoundError:
        raise _other(folder) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise DataError(
            f"{folder}: an import into {str(folder).removesuffix('.part')} still runs: wait for its end, or "
            "choose another path"
        ) from None
    except OSError:
        pass  # a file system without locks: an import there is as good as without this check
    return file


def _other(folder: Path) -> DataError:
    return DataError(
        f"{folder}: holds an import of another source, of one that changed since, or with other options; "
        "delete it to start anew"
    )
