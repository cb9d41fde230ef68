"""Which recipes can record the logits of their training steps (`distillation.record_logits`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from kdcl_dist.config.data import Data
from kdcl_dist.config.distillation import Distillation

__all__ = ["check_recording"]

FIELD = "distillation.record_logits"
#: The name by which the ensemble is recorded.
ENSEMBLE = "ensemble"


def check_recording(
    distillation: Distillation,
    data: Data,
    names: Sequence[str],
    stored: Collection[str],
    coordinators: int,
    epochs: int,
) -> None:
    """See that the training logits of a run can be recorded.

    Args:
        distillation, data, coordinators, epochs: of the recipe.
        names: of all students.
        stored: names of those that are files of logits.

    Raises:
        ValueError: they cannot; the message names the field.
    """
    if (asked := distillation.record_logits) is None:
        return
    _check_names(asked.students, names, stored)
    _check_samples(data, epochs)
    if coordinators > 1:
        raise ValueError(
            f"coordinators: {coordinators} see a share of the logits each, and {FIELD} needs all; set 1"
        )
    if ENSEMBLE in asked.students and distillation.window != 1:
        raise ValueError(
            f"{FIELD}.students: {ENSEMBLE!r} needs the logits of all students at the same step, which "
            f"distillation.window 1 gives (got {distillation.window!r}); name students instead"
        )


def _check_names(asked: Sequence[str], names: Sequence[str], stored: Collection[str]) -> None:
    for name, count in Counter(asked).items():
        if count > 1:
            raise ValueError(f"{FIELD}.students: {name!r} is there more than once")
        if name not in (*names, ENSEMBLE):
            raise ValueError(
                f"{FIELD}.students: no student is named {name!r} (have {', '.join(names)}, and {ENSEMBLE})"
            )
        if name in stored:
            raise ValueError(f"{FIELD}.students: {name!r} is a file of logits already; leave it out")


def _check_samples(data: Data, epochs: int) -> None:
    if data.views is None:
        raise ValueError(
            f"{FIELD}: a file has a fixed number of views of each sample, and data.views is null: set it, to "
            f"{epochs} for the views of all epochs, with which training stays as it is"
        )
    if data.mixes:
        field = "data.mixup" if data.mixup else "data.cutmix"
        raise ValueError(f"{FIELD}: logits of mixed samples are those of no sample; leave {field} out")
