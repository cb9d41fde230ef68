"""The labels of mixed samples, as the coordinator knows them: of its students' rows and the step alone.

Shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.data.mixing import mix_of_round
from kdcl_dist.distillation.labels import is_mixed, largest_class
from kdcl_dist.exchange.message import Contribution

__all__ = ["with_largest_classes", "with_mixed_labels"]


def with_mixed_labels(recipe: Recipe, aligned: Aligned, turn: int) -> Aligned:
    """All samples of a training round with class probabilities as labels, if the recipe mixes.

    Arguments as of `mix_of_round`.
    """
    mix = mix_of_round(recipe, turn, aligned.ids.numpy())
    if mix is None:
        return aligned
    partner_B = torch.searchsorted(aligned.ids, torch.from_numpy(mix.partners))
    labels_BC = mix.labels(aligned.labels, aligned.labels[partner_B], aligned.logits.shape[2])
    return aligned._replace(labels=labels_BC)


def with_largest_classes(parts: Sequence[Contribution], aligned: Aligned) -> Sequence[Contribution]:
    """Each student's rows with the classes by which a step's accuracy counts: those of the larger share."""
    if not is_mixed(aligned.labels):
        return parts
    classes_B = largest_class(aligned.labels)
    return [part._replace(labels=classes_B[torch.searchsorted(aligned.ids, part.ids)]) for part in parts]
