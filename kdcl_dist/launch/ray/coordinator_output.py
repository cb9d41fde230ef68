"""The coordinator's output in the run folder: Ray keeps that of an actor in files of the driver's host."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from kdcl_dist.launch.output_lines import Lines
from kdcl_dist.launch.ray.common import END_S
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.process_log import ProcessLog
from kdcl_dist.run.run import Run

__all__ = ["CoordinatorOutput", "own_files"]

BLOCK_BYTES = 1 << 16


def own_files() -> tuple[int, list[str]]:
    """The id of this process, and the files to which it writes its standard output and error."""
    found = [Path(f"/proc/self/fd/{target}").readlink() for target in (1, 2)]
    return os.getpid(), [str(path) for path in dict.fromkeys(found) if path.is_file()]


class CoordinatorOutput:
    """Copies what the coordinators of a run write into its log, also the last words of one that died."""

    def __init__(self, run: Run) -> None:
        self._log = ProcessLog(run.folder, COORDINATOR)
        self._coordinator = ""
        self._read: dict[str, int] = {}
        self._lines: dict[str, Lines] = defaultdict(Lines)

    def follow(self, coordinator: str, actor: Any) -> None:
        """Copy what is new; the files of another coordinator are taken up.

        Args:
            coordinator: the id of its endpoint.
            actor: its actor.
        """
        if coordinator != self._coordinator:
            self.copy()
            self._end_lines()
            with contextlib.suppress(RayError):
                pid, files = ray.get(actor.output_files.remote(), timeout=END_S)
                self._log.head(f"process {pid} starts")
                self._coordinator, self._read = coordinator, dict.fromkeys(files, 0)
        self.copy()

    def copy(self) -> None:
        """Copy what is new in the files of the coordinator."""
        for path, start in self._read.items():
            with contextlib.suppress(OSError), Path(path).open("rb") as file:  # of another host, or deleted
                file.seek(start)
                while data := file.read(BLOCK_BYTES):
                    self._log.lines(self._lines[path].take(data))
                self._read[path] = file.tell()

    def close(self) -> None:
        """Copy the last output, and complete the log."""
        self.copy()
        self._end_lines()
        self._log.close()

    def _end_lines(self) -> None:
        for lines in self._lines.values():
            self._log.lines(lines.end())
