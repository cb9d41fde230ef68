"""Requests to change a cohort that trains: who is to join it or to leave it, and whether they can.

A request is met between two steps, by a recipe that says so: the student joins, or leaves, at the end of that
epoch. All that follows is as if the recipe had said so from the start.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.agreement import check_agreement
from kdcl_dist.coordinator.processes import Processes
from kdcl_dist.errors import KdclError, RecipeError, StorageError
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.run.cohort_requests import Request, apply, begin, names_of, read, told, withdraw
from kdcl_dist.run.events import Event, Note, Warned
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import BRIEF_S

__all__ = ["LiveChange"]

#: Seconds between two looks for requests: on a disk of this host, and elsewhere, where each look has a price.
LOOK_S, LOOK_FAR_S = 0.5, 5.0
#: Seconds after which a change that the storage refused is tried again.
AGAIN_S = 30.0


class LiveChange:
    """The requests to change the cohort of a run.

    A thread looks for them in the run folder, since a storage may take its time. The launcher is told for
    whom it shall start processes: the recipe with all who are to join.

    Args:
        run: the run.
        processes: of the cohort; None: none is started, so nobody joins.
        waiting: what processes that wait to join report, once all do; takes their ranks to be, by name.
        emit: called with each event.

    Attributes:
        asked: the requests by the names of their files, in their order; a new dict with each look.
        done: epochs that are done when a change takes effect.
        member: what a worker of the cohort reports, with which those who join must agree.
    """

    def __init__(
        self,
        run: Run,
        processes: Processes | None,
        waiting: Callable[[Mapping[str, int]], Sequence[WorkerInfo]],
        emit: Callable[[Event], None],
    ) -> None:
        self.run, self.processes, self.waiting, self.emit = run, processes, waiting, emit
        self.asked: dict[str, Request] = {}
        self.done = run.epoch + 1
        self.member: WorkerInfo | None = None
        self._told: tuple[Recipe, Recipe] | None = None
        self._not_before = 0.0
        self._settled, self._warned = set[str](), set[str]()  # files that are met or refused, and may stay
        self._since: dict[tuple[str, ...], float] = {}
        self._lock, self._stop, self._in_rounds = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kdcl-requests", daemon=True)

    def __enter__(self) -> LiveChange:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._stop.set()
        self._thread.join(BRIEF_S)  # no longer: it may wait for the storage
        for request in () if kind else self.pending.values():
            self.emit(Note(f"not met before the run's end: {told(request, self.done)}"))

    def _watch(self) -> None:
        wait_s = LOOK_S if self.run.folder.local else LOOK_FAR_S
        while not self._stop.wait(wait_s):
            if not self._in_rounds.is_set():  # a coordinator that replaces another does not know its epoch
                continue
            try:
                self.look()
            except StorageError as error:
                self._warn_once("", error)

    @property
    def pending(self) -> dict[str, Request]:
        """Those of `asked` that are neither met nor refused since the last look."""
        return {name: request for name, request in self.asked.items() if name not in self._settled}

    def look(self) -> None:
        """Read the requests that are there, refuse what does not fit, and tell the launcher who is to join.

        Raises:
            StorageError: the folder of the requests cannot be read.
        """
        run, asked, recipe = self.run, dict[str, Request](), self.run.recipe
        for name in (name for name in names_of(run.folder) if name not in self._settled):
            try:
                request = self.asked.get(name) or read(run.folder, name)
                recipe, asked[name] = apply(recipe, request, self.done), request
            except RecipeError as error:
                self._refuse(name, error)
            except StorageError as error:  # such as a file of another user; the others are looked at
                self._warn_once(name, error)
        with self._lock:
            if run is self.run and not self._stop.is_set():  # else a change was met, or the run ends
                self._note(run, asked)

    def _note(self, run: Run, asked: dict[str, Request]) -> None:
        """Note the requests of a run, and tell its launcher who is to join.

        For the launcher they take part from the run's start: so they keep their networks while they wait.
        """
        self.run, self.asked, wanted = run, asked, run.recipe
        for request in asked.values():
            wanted = apply(wanted, request, run.epoch) if "add" in request else wanted
        if (run.recipe, wanted) != self._told:
            self._told = run.recipe, wanted
            if self.processes is not None:
                self.processes.admit(*self._told)

    def _refuse(self, name: str, error: KdclError) -> None:
        """Refuse a request, once: its file may be one that cannot be deleted.

        Those who have asked later get other places: none of them waits at its own before the next look.
        """
        self._settled.add(name)
        self._told = None if name in self.asked else self._told
        self.emit(Warned(told(error)))
        with contextlib.suppress(StorageError):
            withdraw(self.run.folder.with_limit(BRIEF_S), name)

    def _warn_once(self, name: str, error: StorageError) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self.emit(Warned(f"requests to change the cohort: {error.message}; this is tried again"))

    def is_due(self, epoch: int) -> bool:
        """Whether some requests can be met in an epoch, from 0."""
        self.done = epoch + 1
        self._in_rounds.set()
        for name, request in self.pending.items():
            if "add" in request:
                self._refuse_unfit(name, str(request["add"].get("name")))
        return bool(self.pending) and time.monotonic() >= self._not_before and bool(self.ready())

    def _refuse_unfit(self, name: str, student: str) -> None:
        """Refuse a student who would end the run, or hangs: then nobody who asked later could join."""
        now, limit_s = time.monotonic(), self.run.recipe.limits.startup_s
        place = (name, *map(str, self._ranks(student).values()))  # at another place it begins anew
        try:
            if self._waits(student) or place not in self._since:
                self._since[place] = now
            elif now - self._since[place] > limit_s:
                late = f"{student} is not ready to join within {limit_s:g} s (limits.startup_s)"
                self._refuse(name, KdclError(f"{late}: it hangs, or needs longer to start"))
        except KdclError as error:
            self._refuse(name, KdclError(f"{student} {error.message}"))

    def ready(self) -> dict[str, Request]:
        """The requests that can be met: who leaves, and who is to join and waits, in their order.

        A student's numbers depend on its place in the recipe: nobody joins before one who has asked earlier.
        """
        ready, all_wait = dict[str, Request](), True
        for name, request in self.pending.items():
            if "add" in request:
                all_wait = all_wait and self._fits(str(request["add"].get("name")))
            if all_wait or "add" not in request:
                ready[name] = request
        return ready

    def _fits(self, student: str) -> bool:
        """Whether a student waits to join, and agrees with the others; else the next look refuses it."""
        try:
            return self._waits(student)
        except KdclError:
            return False

    def _waits(self, student: str) -> bool:
        """Whether a student waits to join; raises as `check_agreement`."""
        found = self.waiting(ranks) if (ranks := self._ranks(student)) else ()
        if found and self.member is not None:
            check_agreement([self.member, *found])
        return bool(found)

    def _ranks(self, student: str) -> dict[str, int]:
        """The ranks that the workers of a student who is to join will have, by name."""
        workers = enumerate([] if self._told is None else self._told[1].workers)
        return {worker.name: rank for rank, worker in workers if worker.name.partition("/")[0] == student}

    def meet(self, epoch: int) -> Recipe | None:
        """Meet the requests that can be met: write the recipe that says so, from the end of an epoch on.

        Args:
            epoch: of the next round, from 0.

        Returns:
            The recipe; None where there is nothing to meet, or the storage refuses.
        """
        if not self.is_due(epoch):
            return None
        recipe, met = self.run.recipe, dict[str, Request]()
        for name, request in self.ready().items():
            try:
                recipe, met[name] = apply(recipe, request, self.done), request
            except RecipeError as error:
                self._refuse(name, error)
                break
        return self._begun(recipe, met) if met else None

    def _begun(self, recipe: Recipe, met: dict[str, Request]) -> Recipe | None:
        folder = self.run.folder.with_limit(BRIEF_S)
        run = replace(self.run, recipe=recipe)
        try:
            begin(replace(run, folder=folder), met)
        except StorageError as error:
            self._not_before = time.monotonic() + AGAIN_S
            self.emit(Warned(f"the cohort cannot change yet: {error.message}; this is tried again"))
            return None
        with self._lock:
            self._settled |= met.keys()
            self._note(run, self.pending)
        for request in met.values():
            self.emit(Note(told(request, self.done)))
        return recipe
