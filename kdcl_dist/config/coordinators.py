"""Which recipes can have several coordinators, of which each sees a share of a step's samples."""

from __future__ import annotations

from collections.abc import Sequence

from kdcl_dist.config.data import Data
from kdcl_dist.config.distillation import Distillation
from kdcl_dist.config.student import Student

__all__ = ["check_coordinators"]


def check_coordinators(
    count: int, data: Data, distillation: Distillation, students: Sequence[Student], part: tuple[int, str]
) -> None:
    """See that so many coordinators can share a step.

    Args:
        count: of coordinators.
        data, distillation, students: of the recipe.
        part: number of samples of a part of a step, and the fields that it follows from.

    Raises:
        ValueError: they cannot; the message names the field.
    """
    if count == 1:
        return
    field, method = f"coordinators: {count}", distillation.method_name
    if not distillation.sends_target:
        raise ValueError(f"{field} share the forming of soft targets, and method {method!r} has none; set 1")
    if distillation.own_method is not None:
        raise ValueError(
            f"{field} see a share of a step's samples each, and method {method!r} of your own may need all; "
            "set 1"
        )
    if distillation.window != 1:
        raise ValueError(
            f"{field} share the samples of a step, which are the same for all students with "
            f"distillation.window 1 only (got {distillation.window!r})"
        )
    if data.mixes:
        mixing = "data.mixup" if data.mixup else "data.cutmix"
        raise ValueError(
            f"{field} see a share of a step's samples each, and with {mixing} a sample's label depends on "
            "another; set 1"
        )
    if replicated := [student.name for student in students if student.replicas > 1]:
        raise ValueError(
            f"{field} need the samples of a step in one message of each student, and {replicated[0]!r} has "
            "replicas, which share them; set 1"
        )
    size, fields = part
    if count > size:
        raise ValueError(f"{field} cannot share {size} samples ({fields})")
