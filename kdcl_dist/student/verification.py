"""Silent corruption: sampled training steps of a student are computed twice, and all bits compared.

The first computation counts: after the second the student has the state of the first again. A number that
changes while the step is computed, or between the step before and this one, gives other bits. What both
computations read from one place, such as the samples and the soft target, is not compared.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdcl_dist.config.rounds import Round, RunSchedule
from kdcl_dist.data.samples import Inputs
from kdcl_dist.errors import SilentCorruption
from kdcl_dist.exchange.message import Message
from kdcl_dist.exchange.replicas import Replicas
from kdcl_dist.student.snapshot import Snapshot, buffers_of, gradients_of, named_state
from kdcl_dist.student.step_part import StepPart
from kdcl_dist.student.step_tape import Lesson, StepTape
from kdcl_dist.student.student import Student
from kdcl_dist.utils.bits import differing, sum_of_bits
from kdcl_dist.utils.random_state import keep_random_state

__all__ = ["Verification", "compute_again", "listed", "tolerance_of"]

#: The norm of the difference of a tensor, as a share of its norm, that a second computation may show where
#: a GPU's operations are not deterministic.
TOLERANCE = 0.05
#: How many tensors an error names.
SHOWN = 3
REMEDY = "the memory, a processor or the device of this host may be faulty"


class Verification:
    """Computes sampled steps of one student twice; where the recipe samples none, it does nothing.

    Args:
        student: of the run.
        schedule: of the run.

    Attributes:
        tape, before: the current step and the state before it, if the step is verified.
        rest: the state that the next step, or the checkpoint before it, must find; None: not known.
    """

    def __init__(self, student: Student, schedule: RunSchedule) -> None:
        self.student, self.schedule = student, schedule
        self.tape: StepTape | None = None
        self.before: Snapshot | None = None
        self.rest: Snapshot | None = None

    def samples(self, step: int) -> bool:
        """Whether a step is computed twice: every so many, and each that a checkpoint may follow."""
        recipe, schedule = self.student.recipe, self.schedule
        if not (every := recipe.failure.verify_every_steps):
            return False
        epoch, left = divmod(step + 1, schedule.steps_per_epoch)
        may_end = recipe.early_stopping is not None and schedule.tests(epoch - 1)
        return (step + 1) % every == 0 or (left == 0 and (may_end or schedule.saves(epoch - 1)))

    def begin(self, round: Round, inputs: Inputs, learns: bool) -> None:
        """Before the forward pass of a part of a step.

        Raises:
            SilentCorruption: the student's state is not the one that the step before left.
        """
        if round.part == 0:
            self.tape = StepTape(self.student) if self.samples(round.step) else None
            if self.tape is not None:
                self.check_rest(round.step, follows_tests=round.step % self.schedule.steps_per_epoch == 0)
                self.before = Snapshot(self.student)
            self.rest = None
        if self.tape is not None:
            self.tape.begin(round, inputs, learns)

    def keep(self, lesson: Lesson) -> None:
        """Before the loss of a part."""
        if self.tape is not None:
            self.tape.keep(lesson)

    def end(self, round: Round, logits_BC: Tensor, sent: Message, found: StepPart | None) -> None:
        """After a part; after the last part of a sampled step the step is computed again.

        Args:
            round: of the part.
            logits_BC: of its forward pass.
            sent: the message with its rows.
            found: what it has come to; None if the student left it out.

        Raises:
            SilentCorruption: the second computation gives other bits, or the replicas have not the same.
        """
        if self.tape is not None:
            losses = None if found is None else found.on_device
            self.tape.end(logits_BC, sent.contribution().logits, losses)
        if not self.schedule.ends_step(round):
            return
        if self.tape is not None:
            self._compute_again(self.tape, round.step)
            self.tape = self.before = None
        elif self.samples(round.step + 1):
            self.rest = Snapshot(self.student)

    def check_rest(self, step: int, *, follows_tests: bool = True) -> None:
        """See that nothing has changed the student since its last step.

        Buffers are left out after tests, in which a network of the user's may change them, and of replicas,
        whose buffers become the same there.

        Args:
            step: global step of what comes next.
            follows_tests: whether tests come in between.

        Raises:
            SilentCorruption: something has.
        """
        if self.rest is None:
            return
        changes = follows_tests or self.student.replicas is not None
        left_out = buffers_of(self.student.model) if changes else set()
        found = differing(self.rest.tensors, named_state(self.student))
        if found := [name for name in found if name not in left_out]:
            raise SilentCorruption(
                f"{listed(found)} changed between two steps, while nothing was learned: {REMEDY}", step=step
            )

    def _compute_again(self, tape: StepTape, step: int) -> None:
        """Compare a step with its second computation; the state after the first is that to find next."""
        student = self.student
        assert self.before is not None
        per_epoch = self.schedule.steps_per_epoch
        lr = student.lr(step, per_epoch) if student.learns(step // per_epoch) else 0.0  # past its schedule
        own, found, self.rest = compute_again(tape, self.before, lr, tolerance_of(student))
        if student.replicas is not None:
            alike = self.rest.tensors.keys() - buffers_of(student.model)
            tensors = {name: self.rest.tensors[name] for name in alike}
            found = _of_replica(student.replicas, tensors, own, found)
        if found:
            raise SilentCorruption(
                f"{listed(found)} had other bits when the step was computed again: {REMEDY}", step=step
            )


def tolerance_of(student: Student) -> float | None:
    """What `differing` tolerates: nothing on the CPU, and where all operations are deterministic."""
    is_exact = student.device.type == "cpu" or student.recipe.deterministic
    return None if is_exact else TOLERANCE


def compute_again(
    tape: StepTape, before: Snapshot, lr: float, tolerance: float | None
) -> tuple[list[str], list[str], Snapshot]:
    """Compare a step with its second computation; the student has the state after the first again.

    Args:
        tape: of the step.
        before: the student's state before the step.
        lr: learning rate of the step.
        tolerance: as of `differing`.

    Returns:
        The names of the results of the parts that differ; of all that differs; and the state after the step.
    """
    student, restore_random = tape.student, keep_random_state(tape.student.device)
    after, gradients = Snapshot(student), gradients_of(student.model)
    try:
        before.restore()
        own = differing(tape.results, tape.repeat(lr), tolerance)
        found = differing(after.tensors, named_state(student), tolerance)
        if tape.is_learned:
            found = differing(gradients, gradients_of(student.model), tolerance) + found
        return own, own + found, after
    finally:
        after.restore()
        for name, parameter in student.model.named_parameters():
            parameter.grad = gradients.get(f"gradient of {name}")
        restore_random()


def _of_replica(
    replicas: Replicas, alike: Mapping[str, Tensor], own: Sequence[str], found: Sequence[str]
) -> list[str]:
    """The tensors by which this replica is at fault: none if another one knows of a fault of its own.

    Replicas average their gradients, so that a fault of one shows in the gradients of all.

    Args:
        replicas: the link to the others.
        alike: tensors that all replicas have alike.
        own: what differs here and depends on no other replica.
        found: all that differs here.
    """
    names = sorted(alike)
    sums = [torch.tensor(len(own)), *(sum_of_bits(alike[name]) for name in names)]
    rows = replicas.gathered(torch.stack([each.to(replicas.device) for each in sums]))
    table = [row.tolist() for row in rows]
    if not own and any(row[0] for row in table):
        return []
    mine = table[replicas.replica]
    unlike = [
        f"{name} (unlike that of other replicas)"
        for number, name in enumerate(names, 1)
        if 2 * sum(row[number] == mine[number] for row in table) <= len(table)
    ]
    return [*found, *unlike]


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown, more = ", ".join(names[:SHOWN]), len(names) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
