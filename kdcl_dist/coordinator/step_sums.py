"""What is recorded of a part of a training step, as sums over its samples.

Sums of several coordinators, of their shares of the samples, add up to those of all samples.

Shapes: S students, N sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.aggregator import Answer
from kdcl_dist.coordinator.staleness import Staleness, sources_of
from kdcl_dist.distillation.diagnostics import measure
from kdcl_dist.distillation.methods import Context
from kdcl_dist.run.metrics import ENSEMBLE, Scores

__all__ = ["StepSums"]


@dataclass
class StepSums:
    """The sums of one coordinator, or of all.

    Attributes:
        ensemble_s: seconds in which the soft target was formed, the longest of all coordinators.
        scores: of each student, its loss left out, and last of the soft target; nothing of one that is absent
            or left out.
        staleness: counts of the step; None where all logits are of this step.
        samples: behind the diagnostics.
        figures: diagnostics by student, or `ENSEMBLE`, and name, each times `samples`.
    """

    ensemble_s: float
    scores: list[Scores]
    staleness: Staleness | None
    samples: int
    figures: dict[tuple[str, str], float]

    @classmethod
    def of(cls, recipe: Recipe, answer: Answer, weights_S: Tensor, ensemble_s: float, step: int) -> StepSums:
        """The sums of an answer.

        Args:
            recipe: the run.
            answer: to the messages of a part of a training step.
            weights_S: of `general`.
            ensemble_s: seconds in which the answer was formed.
            step: the global step; the recipe says which have diagnostics.
        """
        scores = [Scores() for _ in range(len(answer.parts) + 1)]
        for index, part in enumerate(answer.parts):
            if index not in answer.bad and len(part.ids):
                scores[index].add_ranks(part.logits, part.labels)
        if answer.target is not None and len(answer.target.ids):
            scores[-1].add(answer.target.log_probabilities, answer.target.labels)
        staleness = None
        keeps = recipe.distillation.keeps_logits  # else an age only tells who is absent or bad
        if keeps and answer.known is not None and answer.known.age is not None:
            staleness = Staleness(sources_of(recipe))
            staleness.add(answer.parts, answer.known)
        measured = recipe.analysis.measures(step)
        samples, figures = _diagnostics(recipe, answer, weights_S) if measured else (0, {})
        return cls(ensemble_s, scores, staleness, samples, figures)

    def mean_figures(self) -> Mapping[str, Mapping[str, float]]:
        """The diagnostics, by student or `ENSEMBLE`."""
        found: dict[str, dict[str, float]] = {}
        for (student, name), total in self.figures.items():
            found.setdefault(student, {})[name] = total / self.samples
        return found

    def vector(self) -> Tensor:
        """All sums, float64 (N,); N is the same at all coordinators of a step."""
        scores = [count for own in self.scores for count in (own.samples, own.loss, own.top1, own.top5)]
        counts = [] if self.staleness is None else self.staleness.vector().tolist()
        return torch.tensor(
            [self.ensemble_s, self.samples, *scores, *counts, *self.figures.values()], dtype=torch.float64
        )

    def add(self, vector_N: Tensor) -> None:
        """Add the sums of another coordinator, given as `vector`."""
        ensemble_s, samples, *rest = vector_N.tolist()
        self.ensemble_s, self.samples = max(self.ensemble_s, ensemble_s), self.samples + int(samples)
        for index, own in enumerate(self.scores):
            count, loss, top1, top5 = rest[4 * index : 4 * index + 4]
            own.samples, own.loss = own.samples + int(count), own.loss + loss
            own.top1, own.top5 = own.top1 + int(top1), own.top5 + int(top5)
        rest = rest[4 * len(self.scores) :]
        counts, figures = rest[: len(rest) - len(self.figures)], rest[len(rest) - len(self.figures) :]
        if self.staleness is not None:
            self.staleness.add_vector(torch.tensor(counts).long())
        for key, total in zip(self.figures, figures, strict=True):
            self.figures[key] += total


def _diagnostics(
    recipe: Recipe, answer: Answer, weights_S: Tensor
) -> tuple[int, dict[tuple[str, str], float]]:
    """The samples of which all students that are there have logits, and their diagnostics, each times their
    number.
    """
    if answer.known is None:
        return 0, {}
    there_S = answer.known.there
    aligned = answer.known.complete(there_S)
    if not (samples := len(aligned.ids)):
        return 0, {}
    own = Context(students=tuple(recipe.names), weights_S=weights_S).of(there_S)
    assert own.weights_S is not None
    logits_SBC, temperature = aligned.logits[there_S], recipe.distillation.temperature
    found = measure(own.students, logits_SBC, aligned.labels, temperature, own.weights_S)
    by_student = {ENSEMBLE: found.ensembles, **found.students}
    return samples, {(who, name): samples * x for who, own in by_student.items() for name, x in own.items()}
