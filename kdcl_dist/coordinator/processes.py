"""The coordinator's requests to the launcher that started the cohort's processes."""

from __future__ import annotations

from typing import Protocol

from kdcl_dist.config.recipe import Recipe

__all__ = ["SAVE_ASKED", "Processes"]

#: The notice where a callback of the caller's asks for a checkpoint.
SAVE_ASKED = "a callback asks for it"


class Processes(Protocol):
    """The launcher's view of the cohort's processes."""

    def is_gone(self, name: str, pid: int) -> bool:
        """Whether a worker's process is known to be dead."""

    def has(self, name: str) -> bool:
        """Whether a process was started for a worker, which may have died since."""

    def end(self, name: str, pid: int | None) -> None:
        """End a worker's process that does not answer, so that it is replaced; None: the one it has now."""

    def admit(self, recipe: Recipe, wanted: Recipe) -> None:
        """Start processes for students that are to join while the others train.

        Args:
            recipe: of the run, as it is now.
            wanted: with those who are to join, the last ones; processes of others who were to are ended.
        """

    def notice(self) -> str | None:
        """Once for each: why a checkpoint is wanted now, as when a worker's host is to go; else None."""
