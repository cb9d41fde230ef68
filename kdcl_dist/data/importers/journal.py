"""The finished work of an import: one line of JSON for its source, its statistics and each shard."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """The journal in a folder; `open` reads it or begins a new one."""

    folder: Path
    statistics: dict[str, list[float]] | None = None
    shards: dict[str, Shard] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, identity: dict[str, Any]) -> Journal:
        """Read the journal of a folder, or begin a new one.

        Args:
            folder: made if missing.
            identity: identifies the source and the options; must equal that of the journal.

        Raises:
            DataError: the folder holds something else, or cannot be written.
        """
        journal = cls(folder)
        try:
            if not folder.exists():
                folder.mkdir(parents=True)
                journal._add({"import": identity})
            lines = journal._lines()
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: cannot be written: {one_line(error)}") from error
        if not lines or lines[0] != {"import": identity}:
            raise DataError(
                f"{folder}: holds an import of another source, of one that changed since, or with other "
                "options; delete it to start anew"
            )
        for line in lines[1:]:
            if "statistics" in line:
                journal.statistics = line["statistics"]
            else:
                rejected = [(label, name, reason) for label, name, reason in line["rejected"]]
                journal.shards[line["name"]] = Shard(line["name"], line["digest"], rejected)
        return journal

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
        (folder / NAME).unlink()

    def _add(self, line: dict[str, Any]) -> None:
        with (self.folder / NAME).open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[dict[str, Any]]:
        """All complete lines; deletes a truncated last line."""
        path = self.folder / NAME
        if not path.exists():
            return []
        with open_regular(path) as file:
            text = file.read().decode("ascii", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="ascii", errors="replace")
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except (ValueError, RecursionError):
            return []
