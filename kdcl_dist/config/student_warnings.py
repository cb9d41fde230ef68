"""Settings of students that are allowed but hardly intended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from kdcl_dist.config.schedules import MultiStep, Warmup
from kdcl_dist.config.student import Student

__all__ = ["student_warnings"]


def student_warnings(students: Sequence[Student], epochs_of: Callable[[Student], int]) -> list[str]:
    """A line for each such setting.

    Args:
        students: the cohort.
        epochs_of: gives the number of epochs in which a student learns.
    """
    starts = Counter((s.model, s.weights or s.seed) for s in students if s.weights or s.seed is not None)
    found = [
        f"{count} students start identical (model {model!r}, seed or weights {start!r}): they teach each "
        f"other nothing new; give them different seeds, or seed: null"
        for (model, start), count in starts.items()
        if count > 1
    ]
    for student in students:
        schedule, own = student.schedule, epochs_of(student)
        path = f"students.{student.name}.schedule"
        if isinstance(schedule, MultiStep) and any(m >= own for m in schedule.milestones):
            found.append(f"{path}.milestones: {schedule.milestones} go beyond the {own} epochs")
        if isinstance(schedule, Warmup) and schedule.warmup_epochs >= own:
            found.append(f"{path}.warmup_epochs: {schedule.warmup_epochs}, but there are {own} epochs")
    return found
