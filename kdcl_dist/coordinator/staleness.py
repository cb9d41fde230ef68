"""The age of the logits that form the soft targets, and the share of samples that have a soft target.

Shapes: S students, K bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.exchange.message import Contribution
from kdcl_dist.run.metrics import BINS

__all__ = ["Staleness", "sources_of"]

#: The largest age in steps of each bin of the histogram but the last.
ENDS = torch.tensor([0, 3, 15, 63, 255, 1023, 4095])


class Staleness:
    """Counts over an epoch.

    Args:
        sources: for each student, the peers whose logits form its soft target.
    """

    def __init__(self, sources: Sequence[Sequence[int]]) -> None:
        self.sources = sources
        self.clear()

    def clear(self) -> None:
        """Reset all counts."""
        count = len(self.sources)
        #: By student: samples, samples with a soft target, and the sum of all ages.
        self.sums_S3 = torch.zeros(count, 3, dtype=torch.int64)
        self.histogram_SK = torch.zeros(count, len(BINS), dtype=torch.int64)

    def add(self, parts: Sequence[Contribution], known: Aligned) -> None:
        """Add a step.

        Args:
            parts: each student's rows.
            known: the aligned logits of all of them, with ages.
        """
        assert known.age is not None
        for student, part in enumerate(parts):
            age_PB = known.age[list(self.sources[student])][:, torch.searchsorted(known.ids, part.ids)]
            found_PB = age_PB >= 0
            ages = age_PB[found_PB]
            covered = int(found_PB.any(dim=0).sum())
            self.sums_S3[student] += torch.tensor([len(part.ids), covered, int(ages.sum())])
            self.histogram_SK[student] += torch.bincount(torch.bucketize(ages, ENDS), minlength=len(BINS))

    def vector(self) -> Tensor:
        """All counts, int64."""
        return torch.cat([self.sums_S3.flatten(), self.histogram_SK.flatten()])

    def add_vector(self, counts: Tensor) -> None:
        """Add counts that are given as `vector`."""
        first = self.sums_S3.numel()
        self.sums_S3 += counts[:first].view_as(self.sums_S3)
        self.histogram_SK += counts[first:].view_as(self.histogram_SK)

    def values(self, student: int) -> dict[str, float]:
        """The metrics of one student; none for a student without samples or sources.

        coverage      share of its samples that had a soft target
        staleness     mean age in steps of the peers' logits behind its soft targets
        staleness/X   share of these logits whose age is X
        """
        samples, covered, total = self.sums_S3[student].tolist()
        histogram_K = self.histogram_SK[student].tolist()
        count = sum(histogram_K)
        if not samples or not self.sources[student]:
            return {}
        shares = {f"staleness/{name}": n / max(count, 1) for name, n in zip(BINS, histogram_K, strict=True)}
        mean = {"staleness": total / count} if count else {}
        return {"coverage": covered / samples, **mean, **shares}

    def state_dict(self) -> dict[str, Tensor]:
        """The counts of an unfinished epoch."""
        return {"sums": self.sums_S3, "histogram": self.histogram_SK}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of `state_dict`; students that have been added since are the last ones."""
        self.sums_S3[: len(state["sums"])] = state["sums"]
        self.histogram_SK[: len(state["histogram"])] = state["histogram"]


def sources_of(recipe: Recipe) -> list[list[int]]:
    """For each student the peers whose logits form its soft target; none for stored logits."""
    students, stored = range(len(recipe.students)), recipe.stored
    sources = [recipe.names.index(name) for name in recipe.distillation.teachers] or list(students)
    return [[source for source in sources if index != source and index not in stored] for index in students]
