"""Which students take part in a generation, and which were absent from when to when. Pure state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Round
from kdcl_dist.run.checkpoint import Manifest

__all__ = ["Absences", "Roster"]


class Roster:
    """The students of a run by their indices in the recipe, and who of them is absent.

    Args:
        recipe: of the run.
        absences: those in the run's record.

    Attributes:
        members: students whose epochs it is; the others have not joined yet, or have left.
        away: students that the next generation does not wait for.
        failed: students whose state counts as lost since a failure, until they join a generation.
        absences: the log of absences.
        assistants: the ranks of the coordinator's assistants, which no generation goes without.
    """

    def __init__(self, recipe: Recipe, absences: Sequence[dict[str, Any]] = ()) -> None:
        self.away: set[int] = set()
        self.failed: set[int] = set()
        self.adopt(recipe, absences)
        self.members = list(self.students)

    def adopt(self, recipe: Recipe, absences: Sequence[dict[str, Any]]) -> None:
        """Take over a recipe, whose students that are new are the last ones; `absences` as of the class."""
        self.recipe, self.students = recipe, range(len(recipe.students))
        self.assistants = range(len(recipe.workers), len(recipe.members))
        self.absences = Absences(recipe.names, absences)

    def ranks(self, students: Collection[int]) -> list[int]:
        """The ranks of some students' workers, ascending."""
        return [rank for rank, worker in enumerate(self.recipe.workers) if worker.student in students]

    def complete(self, ranks: Collection[int]) -> list[int]:
        """The members all of whose workers are among some ranks."""
        return [index for index in self.members if set(self.ranks([index])) <= set(ranks)]

    def awaited(self) -> list[int]:
        """The ranks that the next generation needs: those of all members, unless the others suffice."""
        return self.ranks(self._remaining() if self.has_quorum() else self.members)

    def has_quorum(self) -> bool:
        """Whether the students that are not away suffice for a generation."""
        failure, remaining = self.recipe.failure, self._remaining()
        there, all_there = (len(self._with_processes(each)) for each in (remaining, self.members))
        least = 1 if failure.policy == "stop" else max(1, min(failure.min_students, all_there))
        teachers = {self.recipe.names.index(name) for name in self.recipe.distillation.teachers}
        return there >= least and (not teachers or not teachers.isdisjoint(remaining))

    def named(self, names: Collection[str | None]) -> set[int]:
        """The students that are named, themselves or by one of their workers."""
        by_worker = {worker.student for worker in self.recipe.workers if worker.name in names}
        return by_worker | {index for index in self.students if self.recipe.names[index] in names}

    def remove(self, students: Collection[int]) -> None:
        """Students are lost: the next generation neither waits for them nor trusts their state."""
        self.away |= set(students)
        self.failed |= set(students)

    def consequence(self, lost: Collection[int]) -> str:
        """What follows the loss of some students, or of an assistant of the coordinator, in a few words."""
        if not lost:
            return "the students keep their state and wait for the next one"
        if self.has_quorum():
            return "the others go on"
        least = self.recipe.failure.min_students
        return f"fewer than {least} are left (failure.min_students): they wait for it"

    def expect(self, epoch: int, *, later: bool = False) -> None:
        """The next generation is of the members of an epoch, from 0.

        With `later` it waits for those who join later too: what keeps them from training is then known before
        others train.
        """
        joins = [i for i in self.students if later and not self.recipe.students[i].has_left(epoch)]
        self.members = joins if later else self.recipe.cohort(epoch)

    def begin(
        self,
        present: Collection[int],
        restored: Collection[int],
        step: int,
        steps_per_epoch: int,
        start: Manifest | None,
    ) -> list[str]:
        """A generation begins that goes on with the state of others: as `enter`, and with a line for each
        student that joins, is away, or comes back.

        Args:
            present, restored, step, start: as of `Absences.note`.
            steps_per_epoch: of the run.
        """
        self.enter(present)
        firsts = {i: (self.recipe.students[i].from_epoch - 1) * steps_per_epoch for i in self.members}
        joining = [index for index in present if 0 < firsts[index] == step]
        lines = [f"{self.recipe.names[index]} joins at step {step}" for index in joining]
        others = {*self.students} - {*self.members} | {*joining}
        return [*lines, *self.absences.note(present, restored, step, start, others)]

    def history(self, epoch: int, steps_per_epoch: int) -> list[dict[str, Any]]:
        """Who took part from which step on, up to an epoch, from 0; empty where all do all the time."""
        begins = [0, *(end + 1 for end in self.recipe.changes)] if self.recipe.changes else []
        return [
            {
                "step": begin * steps_per_epoch,
                "students": [self.recipe.names[index] for index in self.recipe.cohort(begin)],
            }
            for begin in begins
            if begin <= epoch
        ]

    def enter(self, present: Collection[int]) -> None:
        """A generation begins with some of the members."""
        self.away = set(self.members) - set(present)
        self.failed -= set(present)

    def clear(self) -> None:
        """All students return to a checkpoint."""
        self.away, self.failed = set(), set()

    def resume(
        self, present: Sequence[int], positions: Mapping[int, Round | None], position: Round
    ) -> tuple[Round, list[int]]:
        """The first round of a generation, and the students that have no state to continue with.

        A student has no state before its first generation, after its own failure, or where its replicas
        stand at different steps. The other students may be one round apart: the coordinator's answer
        reached some and not others. All continue at the latest round, without the step that some missed.
        Within a step they begin it anew, at its first part.

        Args:
            present: the students of the generation.
            positions: by rank the round that a worker would take next; None before its first generation.
            position: the round that the coordinator would take next.
        """
        rounds, restored = [position], []
        for index in (index for index in present if index in self.recipe.networks):
            found = (positions[rank] for rank in self.ranks([index]))
            own = {round and round.rewound for round in found}
            round = own.pop()
            if round is None or own or index in self.failed:
                restored.append(index)
            else:
                rounds.append(round)
        return max(rounds, key=lambda round: round.moment).rewound, restored

    def has_lost_all(
        self, positions: Mapping[int, Round | None], position: Round, start: Manifest | None
    ) -> bool:
        """Whether no worker has learned what the coordinator is ahead of the checkpoint `start`.

        The other arguments are as of `resume`.
        """
        workers, first = self.recipe.workers, 0 if start is None else start.step
        new = [at is None or workers[rank].student in self.failed for rank, at in positions.items()]
        return position.step > first and all(new)

    def _with_processes(self, students: Collection[int]) -> list[int]:
        """Those that have processes: files of logits neither learn nor fail."""
        return [index for index in students if index in self.recipe.networks]

    def _remaining(self) -> list[int]:
        return [index for index in self.members if index not in self.away]


class Absences:
    """Which student was absent from when to when, under the policy `continue`.

    Args:
        names: the students.
        found: the absences in the run's record.

    Attributes:
        found: as the run's record has it: the student, the steps between which it took no part, and the
            step of the state with which it came back.
    """

    def __init__(self, names: Sequence[str], found: Sequence[dict[str, Any]] = ()) -> None:
        self.names = names
        self.found = [dict(absence) for absence in found]

    def rewind(self, start: Manifest | None) -> None:
        """Return to a checkpoint, or to the run's start: later absences have not happened."""
        step = 0 if start is None else start.step
        self.found = [absence for absence in self.found if absence["since"] < step]
        for absence in self.found:
            if absence["until"] is None or absence["until"] > step:
                absence |= {"until": step, "state_of": _state_of(start, absence["student"])}

    def note(
        self,
        present: Collection[int],
        restored: Collection[int],
        step: int,
        start: Manifest | None,
        others: Collection[int] = (),
    ) -> list[str]:
        """Note who is present in a generation; returns a line for each student that left or came back.

        Args:
            present, restored: see `kdcl_dist.membership.rendezvous.GenerationSpec`.
            step: training steps done before the generation.
            start: the checkpoint that restored students take their state from.
            others: indices of students that join now, or whose epochs it is not.
        """
        lines = []
        for index, name in enumerate(self.names):
            if index in others:
                continue
            absence = next((a for a in self.found if (a["student"], a["until"]) == (name, None)), None)
            if index not in present and absence is None:
                self.found.append({"student": name, "since": step, "until": None, "state_of": None})
                lines.append(f"{name} is away from step {step} on")
            elif index in restored:
                state_of = _state_of(start, name)
                if absence is None:
                    self.found.append(absence := {"student": name, "since": step})
                absence |= {"until": step, "state_of": state_of}
                lines.append(f"{name} is back at step {step}, with its state of step {state_of}")
        return lines


def _state_of(start: Manifest | None, name: str) -> int:
    """Training steps in the state that a student takes from a checkpoint."""
    return 0 if start is None or name not in start.parts else start.step_of(name)
