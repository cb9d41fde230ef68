"""What goes over the exchange layout in a run: the size of its messages, and who reads them.

All of it follows from the recipe and the number of classes, so that every rank knows it without a word.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import share_of
from kdcl_dist.exchange.message import MessageLayout

__all__ = ["DTYPES", "ExchangeLayout", "answer_rows", "sends_target"]

#: By their names in recipes.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ExchangeLayout(NamedTuple):
    """The messages of a run.

    Attributes:
        message: of every worker; sized for the student with the fewest replicas.
        answer: of the coordinator.
        all_to_all: whether students read each other's messages; else they go to the coordinator only.
    """

    message: MessageLayout
    answer: MessageLayout
    all_to_all: bool = False

    @classmethod
    def of(cls, recipe: Recipe, classes: int) -> ExchangeLayout:
        """As a recipe needs it."""
        dtype = DTYPES[recipe.distillation.wire_precision]
        rows = max(share_of(recipe.batch_size, 0, each.replicas) for each in recipe.students)
        return cls(
            MessageLayout(rows, classes, dtype),
            MessageLayout(answer_rows(recipe), classes, dtype),
            all_to_all=recipe.distillation.method == "dml",
        )


def sends_target(recipe: Recipe) -> bool:
    """Whether the coordinator's answer carries a soft target."""
    return recipe.distillation.method not in ("none", "dml")


def answer_rows(recipe: Recipe) -> int:
    """Rows of the coordinator's answer: a step's samples, at most as many for each student in a window."""
    distillation, students = recipe.distillation, len(recipe.students)
    if not sends_target(recipe):
        return 0
    apart = students if distillation.window == "epoch" else min(students, distillation.window)
    return apart * recipe.batch_size
