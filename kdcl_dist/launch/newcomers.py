"""Newcomers' processes: students that join a run that trains. Until then their failures are not the run's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import KdclError, StorageError
from kdcl_dist.launch.failures import failure_of
from kdcl_dist.launch.processes import Process, finish
from kdcl_dist.run.cohort_requests import withdraw
from kdcl_dist.run.events import Event, Warned
from kdcl_dist.run.storage import BRIEF_S, Folder

__all__ = ["LocalNewcomers", "Newcomers"]


T = TypeVar("T")


class Newcomers(ABC, Generic[T]):
    """Starts and ends these processes, and refuses a student whose process fails.

    Args:
        folder: of the run.
        start: starts the process of the worker of a name, for a recipe that has it.
        on_event: called with each event.

    Attributes:
        processes: by the names of their workers.
    """

    def __init__(
        self, folder: Folder, start: Callable[[str, Recipe], T], on_event: Callable[[Event], None]
    ) -> None:
        self.folder, self.start, self.on_event = folder.with_limit(BRIEF_S), start, on_event
        self.processes: dict[str, T] = {}
        self._places: dict[str, int] = {}

    @abstractmethod
    def failure(self, process: T) -> KdclError | None:
        """How a process has failed; None where it has not."""

    @abstractmethod
    def end(self, process: T) -> None:
        """End a process."""

    def take(self, recipe: Recipe) -> list[T]:
        """The processes of those that belong to the run by now, whose recipe this is."""
        names = [worker.name for worker in recipe.workers if worker.name in self.processes]
        return [self.processes.pop(name) for name in names]

    def admit(self, recipe: Recipe, wanted: Recipe) -> None:
        """Have a process for each worker that is to join, and no other.

        A student's numbers depend on its place in the recipe: one whose place has changed begins anew.

        Args:
            recipe: of the run.
            wanted: with those who are to join, the last ones.
        """
        places = {each.name: each.student for each in wanted.workers if each.student >= len(recipe.students)}
        self._end([name for name in self.processes if self._places[name] != places.get(name)])
        self._places, refused = places, set[int]()
        for name, place in places.items():
            if name in self.processes or place in refused:
                continue
            try:
                self.processes[name] = self.start(name, wanted)
            except KdclError as error:  # no room, or no process in time
                self._refuse(name, error)
                refused.add(place)

    def refuse_failed(self) -> None:
        """Refuse those whose processes have failed, with a line."""
        for name, process in list(self.processes.items()):
            if name in self.processes and (why := self.failure(process)) is not None:
                self._refuse(name, why)

    def close(self) -> None:
        """End all processes."""
        self._end(list(self.processes))

    def _refuse(self, name: str, why: KdclError) -> None:
        student = name.partition("/")[0]
        self._end([other for other in self.processes if other.partition("/")[0] == student])
        self.on_event(Warned(f"{student} does not join: {'; '.join(str(why).splitlines())}"))
        with suppress(StorageError):
            withdraw(self.folder, student=student)

    def _end(self, names: Sequence[str]) -> None:
        for process in map(self.processes.pop, names):
            self.end(process)


class LocalNewcomers(Newcomers[Process]):
    """The same for processes that this process has started."""

    def failure(self, process: Process) -> KdclError | None:
        """See `Newcomers`."""
        return failure_of(process) if process.failed else None

    def end(self, process: Process) -> None:
        """See `Newcomers`."""
        process.handle.kill()
        finish(process)
