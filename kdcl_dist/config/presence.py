"""Who takes part in which epoch: members of the cohort join it and leave it at the ends of epochs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from kdcl_dist.config.student import Student

__all__ = ["MAX_STUDENTS", "changes_of", "check_presence", "members_of"]

#: The most students of one run; each has a bit in the header of the coordinator's answers.
MAX_STUDENTS = 256

Learns = Callable[[Student, int], bool]


def members_of(students: Sequence[Student], epoch: int) -> list[int]:
    """The indices of the students that take part in an epoch, from 0."""
    return [index for index, student in enumerate(students) if student.takes_part(epoch)]


def changes_of(students: Sequence[Student], epochs: int) -> tuple[int, ...]:
    """The epochs, from 0, at whose end students join or leave, in a run of so many epochs."""
    ends = {student.from_epoch - 1 for student in students} | {student.until_epoch for student in students}
    return tuple(sorted(end - 1 for end in ends if end is not None and 0 < end < epochs))


def check_presence(
    students: Sequence[Student], epochs: int, learns: Learns, teachers: Collection[str]
) -> None:
    """See that every student's epochs are some of the run's, and that each epoch has a student that learns.

    And that there are not too many.

    Args:
        students: the cohort.
        epochs: of the run.
        learns: whether a student learns in an epoch, from 0.
        teachers: names of the teachers of method `teacher`, of whom each epoch needs one.

    Raises:
        ValueError: they do not fit; the message names the field.
    """
    if len(students) > MAX_STUDENTS:
        raise ValueError(
            f"students: {len(students)} are more than the {MAX_STUDENTS} that a run can have in all"
        )
    for student in students:
        _check_epochs(student, epochs)
    for epoch in _turns(students, epochs):
        there = [students[index].name for index in members_of(students, epoch)]
        if teachers and not {*teachers} & {*there}:
            raise ValueError(
                f"students: no teacher ({', '.join(teachers)}) takes part in epoch {epoch + 1}; see their "
                "from_epoch and until_epoch"
            )
        if any(learns(student, epoch) for student in students):
            continue
        if epoch + 1 == epochs:
            raise ValueError(f"epochs: {epochs} is more than any student learns for; lower it")
        raise ValueError(
            f"students: none learns in epoch {epoch + 1}; see their from_epoch, until_epoch and epochs"
        )


def _turns(students: Sequence[Student], epochs: int) -> list[int]:
    """The first and the last epoch, and those with which students begin or end to learn or to take part."""
    found = {0, epochs - 1, *(end + 1 for end in changes_of(students, epochs))}
    ends = {student.from_epoch - 1 + student.epochs for student in students if student.epochs is not None}
    return sorted(epoch for epoch in found | ends if epoch < epochs)


def _check_epochs(student: Student, epochs: int) -> None:
    fields = {"from_epoch": student.from_epoch, "until_epoch": student.until_epoch, "epochs": student.epochs}
    for field, value in fields.items():
        if value is not None and value > epochs:
            raise ValueError(
                f"students.{student.name}.{field}: {value} is more than the run has: epochs is {epochs}"
            )
    if student.epochs is not None and student.from_epoch - 1 + student.epochs > epochs:
        raise ValueError(
            f"students.{student.name}.epochs: {student.epochs} from epoch {student.from_epoch} on are more "
            f"than the run has: epochs is {epochs}"
        )
