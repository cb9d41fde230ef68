"""The layout of a run's messages: their sizes, and who reads them.

The layout follows from the recipe and the number of classes. So every rank knows it without communication.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import share_of
from kdcl_dist.exchange.message import MessageLayout

__all__ = ["DTYPES", "ExchangeLayout", "answer_rows"]

#: The types of `distillation.wire_precision`.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ExchangeLayout(NamedTuple):
    """The messages of a run.

    Attributes:
        message: of a worker's message, which holds the share of a student with the fewest replicas.
        answer: of the coordinator's answer.
        all_to_all: whether students read each other's messages; otherwise only the coordinator does.
        checksums: whether each message has a checksum, which its readers check.
    """

    message: MessageLayout
    answer: MessageLayout
    all_to_all: bool = False
    checksums: bool = False

    @classmethod
    def of(cls, recipe: Recipe, classes: int) -> ExchangeLayout:
        """The layout that a recipe needs for data of so many classes."""
        dtype = DTYPES[recipe.distillation.wire_precision]
        rows = max(share_of(recipe.part_size, 0, each.replicas) for each in recipe.networks.values())
        return cls(
            MessageLayout(rows, classes, dtype),
            MessageLayout(answer_rows(recipe), classes, dtype),
            all_to_all=recipe.distillation.peers,
            checksums=recipe.failure.verify_every_steps > 0,
        )


def answer_rows(recipe: Recipe) -> int:
    """Rows of the coordinator's answer: the samples of a round; a window has up to one batch per student.

    To students that learn from their peers' own logits it brings those of the stored members.
    """
    distillation, students = recipe.distillation, len(recipe.networks)
    if not distillation.sends_target:
        return len(recipe.stored) * recipe.part_size if recipe.answers_rows else 0
    batches = students if distillation.window == "epoch" else min(students, distillation.window)
    return batches * recipe.part_size
