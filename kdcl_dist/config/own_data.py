"""The field `students.N.data` of a recipe: training samples of one student's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, model_validator

from kdcl_dist.config.base import ClassNames, Strict

__all__ = ["OwnData", "check_own_data"]


def _check_share(value: Any) -> Any:
    """See that the value is one of both forms; a union would tell an error of each."""
    ends = value if isinstance(value, list) else [0, value]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if value is not None and not (numbers and len(ends) == 2 and 0 <= ends[0] < ends[1] <= 1):
        raise ValueError(
            "must be a number above 0 and at most 1, or the two ends of a part, 0 <= first < second <= 1, "
            "as [0, 0.5]"
        )
    return value


Part = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)]


class OwnData(Strict):
    """The training samples from which one student learns, if not all.

    With `classes` and `share` they are the share of those classes. Held-out, validation and test samples are
    the same for all students.

    Shares with two ends are parts of one order of each class's samples, which the run's seed draws:
    `[0, 0.5]` and `[0.5, 1]` have no sample in common, `[0, 0.6]` and `[0.4, 1]` a fifth.

    With `sees: own` an epoch has as many steps for all as the student with the most samples needs for one
    pass; a student with fewer begins its next pass, in another order.
    """

    classes: ClassNames | None = Field(
        default=None, description="Classes of the student's samples, at least two. `null`: all."
    )
    share: Annotated[Annotated[float, Field(gt=0, le=1)] | Part | None, BeforeValidator(_check_share)] = (
        Field(
            default=None,
            description="Share of the samples of each class: a number, drawn by the student's seed, or two "
            "ends as `[0, 0.5]`. `null`: all.",
        )
    )
    sees: Literal["own", "all"] = Field(
        default="own",
        description="`own`: no other samples, which needs `distillation.window: epoch`. `all`: the student "
        "answers on the samples of others too, without learning from them.",
    )

    @property
    def ends(self) -> tuple[float, float]:
        """The two ends of the share."""
        low, high = self.share if isinstance(self.share, list) else (0.0, self.share or 1.0)
        return low, high

    @property
    def is_drawn(self) -> bool:
        """Whether the student's own seed draws the share."""
        return isinstance(self.share, float)

    @model_validator(mode="after")
    def _something_is_given(self) -> OwnData:
        if self.classes is None and self.share is None:
            raise ValueError("needs classes or share, or is null for all samples")
        return self


class _Owner(Protocol):
    """A student of a recipe."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> OwnData | None: ...


def check_own_data(students: Iterable[_Owner], window: int | str, *, mixes: bool) -> None:
    """See that other fields allow students to learn from different samples.

    Args:
        students: the cohort.
        window: `distillation.window`.
        mixes: whether samples are mixed.

    Raises:
        ValueError: they do not.
    """
    for name, data in ((student.name, student.data) for student in students if student.data is not None):
        if data.sees == "own" and window != "epoch":
            raise ValueError(
                f"students.{name}.data: a student that sees its own samples only learns from the others' "
                f"last logits of them: set distillation.window to epoch (got {window!r}), or sees to all"
            )
        if mixes:
            raise ValueError(
                f"students.{name}.data: data.mixup and data.cutmix mix a sample with another of its step, "
                "which may not be the student's own: leave them out"
            )
