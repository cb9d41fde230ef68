"""Whether students that read a window in different orders have all seen its samples, each once.

For each student the check keeps the sum of its hashed sample ids. Other samples give the same sum with a
probability of 2^-64 only, so the check needs no list of the window's samples.

Shapes: S students, B samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import RunSchedule
from kdcl_dist.errors import MisalignedIds
from kdcl_dist.exchange.message import Contribution

__all__ = ["WindowCheck", "make_window_check"]


class WindowCheck:
    """The check of the current window.

    Args:
        names: of all students.
        width: steps of a window; the last window of an epoch may be shorter.
        steps_per_epoch: steps of an epoch.

    Attributes:
        sums_S: sums of the hashed sample ids of the window's steps.
        whole: whether the sums have all steps of the window.
    """

    def __init__(self, names: Sequence[str], width: int, steps_per_epoch: int) -> None:
        self.names, self.width, self.steps_per_epoch = names, width, steps_per_epoch
        self.sums_S = torch.zeros(len(names), dtype=torch.int64)
        self.whole = True

    def interrupt(self) -> None:
        """Skip the check of this window, since students may miss some of its steps."""
        self.whole = False

    def add(self, parts: Sequence[Contribution], present: Sequence[int], step: int) -> None:
        """Add a step's samples.

        Args:
            parts: each student's rows.
            present: indices of the students that take part.
            step: the global step.

        Raises:
            MisalignedIds: the window ends, and a student has seen other samples than most.
        """
        self.sums_S += torch.stack([_hashed(part.ids).sum() for part in parts])
        steps_done = step % self.steps_per_epoch + 1
        if steps_done % self.width and steps_done != self.steps_per_epoch:
            return
        sums, whole = self.sums_S.tolist(), self.whole
        self.sums_S, self.whole = torch.zeros_like(self.sums_S), True
        usual, _ = Counter(sums[index] for index in present).most_common(1)[0]
        for index in present if whole else ():
            if sums[index] != usual:
                raise MisalignedIds(
                    "has seen other samples than the rest of the cohort in the window that ends here",
                    student=self.names[index],
                )


def make_window_check(recipe: Recipe, schedule: RunSchedule) -> WindowCheck | None:
    """The window check of a run; None if all see the same samples at every step, or some see their own."""
    window = recipe.distillation.window
    if window == 1 or any(student.sees_part for student in recipe.students):
        return None
    width = schedule.steps_per_epoch if window == "epoch" else window
    return WindowCheck(recipe.names, width, schedule.steps_per_epoch)


def _hashed(ids_B: Tensor) -> Tensor:
    """A 64-bit hash of each id: the finaliser of SplitMix64 (Steele et al., 2014)."""
    z = (ids_B.numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((z ^ (z >> np.uint64(31))).view(np.int64))
