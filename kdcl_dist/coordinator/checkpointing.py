"""The coordinator's state, and how checkpoints save and restore it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.config.student import Worker
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.logit_bank import PREFIX, LogitBank, make_bank
from kdcl_dist.coordinator.logit_record import RECORD_PREFIX, LogitRecord
from kdcl_dist.coordinator.metrics_collector import MetricsCollector
from kdcl_dist.coordinator.stored_members import StoredMembers
from kdcl_dist.coordinator.window_check import make_window_check
from kdcl_dist.exchange.message import Message
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.checkpoint import (
    InMemory,
    Manifest,
    Part,
    commit,
    copy_part,
    read_part,
    write_content,
    write_part,
)
from kdcl_dist.run.run import Run
from kdcl_dist.run.validation import Best, Validation, read_validation
from kdcl_dist.tracking.tracking import Tracking

__all__ = ["CoordinatorState", "KeptState", "epoch_of", "save_checkpoint", "student_parts"]


class KeptState(NamedTuple):
    """The coordinator's state in a checkpoint in memory.

    parts: makes its parts, by name. saved: the latest checkpoint on the storage at that time.
    """

    parts: Callable[[], dict[str, dict[str, Any]]]
    saved: Manifest | None


@dataclass
class CoordinatorState:
    """What the coordinator keeps between rounds, and between generations that continue with it.

    Attributes:
        schedule: of the run; early stopping shortens it.
        validation: the tests on validation samples so far.
        record: of training logits.
        position: the next round.
        saved: the latest checkpoint.
    """

    aggregator: Aggregator
    metrics: MetricsCollector
    schedule: RunSchedule
    validation: Validation
    record: LogitRecord
    position: Round
    saved: Manifest | None

    @classmethod
    def of(
        cls,
        run: Run,
        schedule: RunSchedule,
        classes: int,
        tracking: Tracking | None = None,
        kept: KeptState | None = None,
    ) -> CoordinatorState:
        """The state at the run's start: that of the checkpoint `run.start`, or a new one.

        Args:
            run, schedule: the run, and its schedule.
            classes: of the data.
            tracking: the run's other trackers.
            kept: the coordinator's state in `run.start`, if that is a checkpoint in memory.
        """
        bank = make_bank(run.recipe, schedule.samples, classes)
        aggregator = Aggregator(run.recipe, bank, make_window_check(run.recipe, schedule))
        aggregator.load_method(classes)
        aggregator.stored = StoredMembers.open(run.recipe)
        metrics, position = MetricsCollector(run, schedule, tracking), schedule.first(run.step)
        saved = run.start if kept is None else kept.saved
        record = LogitRecord(run.recipe, schedule.samples, classes)
        state = cls(aggregator, metrics, schedule, Validation(), record, position, saved)
        if kept is not None:
            parts = kept.parts()
            state._load(run.step, parts, parts.__getitem__)
        elif run.start is not None:
            state._load(run.step, run.start.parts, partial(read_part, run.folder, run.start))
        return state

    def _load(self, step: int, names: Iterable[str], read: Callable[[str], dict[str, Any]]) -> None:
        """Load the coordinator's parts of a checkpoint: of those with some names, which `read` gives."""
        own = read(COORDINATOR)
        self.aggregator.load_state_dict(own["coordinator"])
        self.metrics.load_state_dict(own)
        self.validation = Validation(own.get("validation", ()))
        if self.validation.tests and self.validation.tests[-1]["step"] == step:
            self.stop_early()
        self.position = self.schedule.first(step)
        for prefix, store in self.stores.items():
            for name in (name for name in names if name.startswith(prefix)):
                store.load(read(name))

    def kept(self, step: int) -> KeptState:
        """A copy of the state before a step, for a checkpoint in memory."""
        own = copy.deepcopy(
            {"coordinator": self.aggregator.state_dict(), "validation": self.validation.tests}
        )
        metrics = self.metrics.kept()
        logits = {name: part for store in self.stores.values() for name, part in store.parts(step)}
        return KeptState(lambda: {COORDINATOR: copy.deepcopy(own | metrics()), **logits}, self.saved)

    @property
    def stores(self) -> dict[str, LogitBank | LogitRecord]:
        """The stores of logits that have parts of their own in a checkpoint, by the prefix of these."""
        bank = self.aggregator.bank
        return ({} if bank is None else {PREFIX: bank}) | {RECORD_PREFIX: self.record}

    @property
    def next_change(self) -> int:
        """The epoch, from 0, at whose end the cohort can change next: one whose tests are still to come."""
        return self.position.epoch + (self.position.kind is Kind.CHECKPOINT)

    def adopt(self, recipe: Recipe) -> None:
        """Take over a recipe with another cohort: the state is that of a run whose recipe said so."""
        self.schedule = self.schedule.for_cohort(recipe.changes, averages=bool(recipe.averaged))
        self.aggregator.adopt(recipe, make_window_check(recipe, self.schedule))
        self.metrics.adopt(recipe, self.schedule)

    def interrupt(self, restored: Sequence[int]) -> None:
        """Go on in another generation, into which some students bring the weights of a checkpoint."""
        for index in restored:
            self.aggregator.bad_steps.pop(index, None)
        if self.position.kind in (Kind.EVALUATE, Kind.CHECKPOINT):  # after the epoch's validation
            names = [self.aggregator.names[index] for index in restored]
            self.validation.lose(names, self.position.step)
        if self.aggregator.window_check is not None:
            self.aggregator.window_check.interrupt()

    @property
    def early_end(self) -> str | None:
        """Why the run ends before its last epoch; None if it does not."""
        recipe = self.aggregator.recipe
        if (stopping := recipe.early_stopping) is None or self.schedule.epochs == recipe.epochs:
            return None
        return (
            f"early stopping after epoch {self.schedule.epochs} of {recipe.epochs}: no student's "
            f"{stopping.metric} on validation samples has improved in the last "
            f"{self.validation.waited(recipe.learners, stopping.metric)} tests"
        )

    def stop_early(self) -> str | None:
        """Let the run end with the epoch of the last validation test if patience is over; returns why.

        None: the run goes on, or that is its last epoch anyway.
        """
        recipe = self.aggregator.recipe
        if (epochs := self.validation.early_end(recipe.learners, recipe.early_stopping)) is not None:
            self.schedule = replace(self.schedule, epochs=epochs)
        return self.early_end

    def bests(self, until: float = math.inf) -> dict[str, Best]:
        """The best epoch, up to a step, of each student that has one."""
        recipe = self.aggregator.recipe
        return self.validation.bests(recipe.names, recipe.checkpoint.best, until)

    def best_steps(self, step: int) -> set[int]:
        """The steps of the checkpoints that hold the best weights as the checkpoint of a step knows them."""
        return {best.step for best in self.bests(step).values()}

    def close(self) -> None:
        """Close the files of the state."""
        self.metrics.close()
        if self.aggregator.bank is not None:
            self.aggregator.bank.close()


def save_checkpoint(
    run: Run,
    state: CoordinatorState,
    step: int,
    parts: dict[str, Part],
    in_memory: Callable[[str], tuple[bytes, int] | None] = lambda student: None,
) -> None:
    """Write the coordinator's parts of a checkpoint, then the manifest, which completes it.

    The part of an absent student is that of the newest checkpoint in memory, or copied from the one before.

    Args:
        run: the run.
        state: of the coordinator; `saved` becomes the new checkpoint.
        step: training steps before the checkpoint.
        parts: by name those that the present students have written.
        in_memory: gives the content of a student's part that is in memory, and its step; None without one.
    """
    folder = run.folder
    own_state = {"coordinator": state.aggregator.state_dict()} | state.metrics.state_dict()
    if state.validation.tests:
        state.validation.lose([name for name in run.recipe.names if name not in parts], step)
        own_state["validation"] = state.validation.tests
    own = write_part(folder, step, COORDINATOR, own_state)
    for name in (name for name in run.recipe.names if name not in parts):
        if (kept := in_memory(name)) is not None:
            parts = parts | {name: write_content(folder, step, name, *kept)}
        elif state.saved is not None and name in state.saved.parts:
            parts = parts | {name: copy_part(folder, state.saved, step, name)}
    for store in state.stores.values():
        parts = parts | {name: write_part(folder, step, name, part) for name, part in store.parts(step)}
    is_end = state.early_end is not None
    epoch = state.schedule.epochs - 1 if is_end else step // state.schedule.steps_per_epoch
    manifest = Manifest(step, parts | {COORDINATOR: own}, epoch=epoch)
    commit(folder, manifest)
    state.saved = manifest


def epoch_of(run: Run, schedule: RunSchedule) -> int:
    """The epoch, from 0, in which `run.start` goes on; the run's last also after its end by early stopping.

    Args:
        run: the run.
        schedule: of its recipe.
    """
    recipe, start, epoch = run.recipe, run.start, schedule.first(run.step).epoch
    if recipe.early_stopping is None or start is None or isinstance(start, InMemory):
        return epoch
    validation = read_validation(run.folder, start)
    if validation.tests and validation.tests[-1]["step"] == start.step:
        epochs = validation.early_end(recipe.learners, recipe.early_stopping)
        return epoch if epochs is None else epochs - 1
    return epoch


def student_parts(
    names: Sequence[str], workers: Sequence[Worker], messages: Sequence[Message]
) -> dict[str, Part]:
    """The parts of a checkpoint that the students report, by name: each student's first replica writes one.

    Args:
        names: of all students.
        workers: the senders of the messages.
        messages: one of each worker.
    """
    return {
        names[worker.student]: Part(bytes(message.header["digest"]).hex(), int(message.header["bytes"]))
        for worker, message in zip(workers, messages, strict=True)
        if worker.replica == 0
    }
