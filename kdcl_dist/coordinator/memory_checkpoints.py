"""Checkpoints in memory, between those on the storage: from which steps, and whether one is whole.

Each student sends its state to the coordinator's process, and keeps a copy. So the states outlive any number
of students that die at once, and nobody needs a connection that it has not anyway. The coordinator's own
state is in its process only: after its death all go back to the storage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.coordinator.checkpointing import CoordinatorState, KeptState
from kdcl_dist.errors import KdclError, NonFiniteLogits, SilentCorruption
from kdcl_dist.exchange.message import Flag
from kdcl_dist.membership.shelf import Shelf
from kdcl_dist.run.checkpoint import InMemory, part_of

__all__ = ["MemoryCheckpoints"]


@dataclass
class _Kept:
    """One checkpoint.

    manifest: has no parts until the checkpoint is whole. students: those whose states make it whole.
    own: the coordinator's state, once it is kept.
    """

    manifest: InMemory
    students: set[str]
    own: KeptState | None = None


class MemoryCheckpoints:
    """The newest checkpoint in memory that is whole, and the next one, while its states are on their way.

    Args:
        recipe: of the run.
        shelf: takes the students' states.
    """

    def __init__(self, recipe: Recipe, shelf: Shelf) -> None:
        self.shelf = shelf
        # A run that ends with its first failure goes back nowhere.
        self.every = recipe.checkpoint.in_memory_every_steps if recipe.failure.allowed else 0
        self._next: _Kept | None = None
        self._whole: _Kept | None = None

    def ask(self, generation: int, round: Round, state: CoordinatorState) -> Flag:
        """`KEEP` if all students are to keep their state after a round of a generation.

        They are not while one is absent, whose state would be lacking, nor while states are still on their
        way: sending takes as long as it takes, and no step waits for it.
        """
        step, aggregator = round.step + 1, state.aggregator
        if not self.every or step % self.every or not state.schedule.can_resume_after(round):
            return Flag.NONE
        if self.is_on_its_way() or set(aggregator.present) != set(aggregator.members):
            return Flag.NONE
        manifest = InMemory(step, {}, epoch=round.epoch, generation=generation)
        self._next = _Kept(manifest, {aggregator.names[index] for index in aggregator.senders})
        self._retain(self._next, self._whole)
        return Flag.KEEP

    def keep(self, round: Round, state: CoordinatorState) -> None:
        """Keep the coordinator's state before a round, if the students keep theirs.

        The messages of this round have brought the metrics of the step before; nothing else of it counts yet.
        """
        asked = self._next
        if asked is None or asked.own is not None:
            return
        if round == Round(Kind.TRAIN, round.epoch, asked.manifest.step):
            asked.own = state.kept(round.step)

    def is_on_its_way(self) -> bool:
        """Whether a checkpoint is not whole yet; one that is takes the place of the one before."""
        if (asked := self._next) is None:
            return False
        parts = self.shelf.parts(asked.manifest.key)
        if asked.own is None or not asked.students <= parts.keys():
            return True
        asked.manifest = replace(asked.manifest, parts=parts)
        self._whole, self._next = asked, None
        return False

    def newest(self) -> InMemory | None:
        """The newest whole checkpoint, to which all can go back; one that is on its way is given up."""
        self.is_on_its_way()
        self._next = None
        self._retain(self._whole)
        return None if self._whole is None else self._whole.manifest

    def own_state(self) -> KeptState | None:
        """The coordinator's state in the newest whole checkpoint."""
        return None if self._whole is None else self._whole.own

    def state_of(self, student: str) -> tuple[bytes, int] | None:
        """A student's state in the newest whole checkpoint, as the content of a part, and its step."""
        manifest = None if self._whole is None else self._whole.manifest
        if manifest is None or student not in manifest.parts:
            return None
        data = self.shelf.state(manifest.key, student)
        return (data, manifest.step) if part_of(data) == manifest.parts[student] else None

    def consequence(self) -> str:
        """What follows a failure after which all go back, in a few words."""
        newest = self.newest()
        where = "the latest checkpoint" if newest is None else f"step {newest.step}, kept in memory"
        return f"all go back to {where}"

    def judge(self, cause: KdclError) -> None:
        """Forget all after bad numbers, which a state of a few steps before may have as well."""
        if isinstance(cause, NonFiniteLogits | SilentCorruption):
            self.clear()

    def clear(self) -> None:
        """Forget all: a checkpoint on the storage is newer, or more to be trusted."""
        self._next = self._whole = None
        self._retain()

    def _retain(self, *kept: _Kept | None) -> None:
        self.shelf.retain(*(each.manifest.key for each in kept if each is not None))
