"""The weights of classes in a student's loss: given ones, or balanced by the training samples.

Shapes: N training samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kdcl_dist.data.sampling import Ids
from kdcl_dist.errors import RecipeError

__all__ = ["class_weights"]

#: Names in one error.
SHOWN = 5


def class_weights(
    given: str | Mapping[str, float], classes: Sequence[str], labels_N: Ids, field: str
) -> Tensor:
    """The weight of each class, float32 (C,).

    Args:
        given: weights by the name of the class; or "balanced", N / (C n_c) for the n_c samples of class c,
            as scikit-learn's `compute_class_weight`: the mean weight of a sample is 1.
        classes: the names.
        labels_N: the labels of the training samples.
        field: of the recipe, for errors.

    Raises:
        RecipeError: a class has no weight, or no samples to balance, or is none of the data.
    """
    if isinstance(given, str):
        count_C = np.bincount(labels_N, minlength=len(classes))
        empty = [name for name, count in zip(classes, count_C, strict=True) if not count]
        if empty:
            raise RecipeError(
                f"{field}: 'balanced' needs training samples of every class, and there are none of "
                f"{_shown(empty)}: leave them out by data.classes, or give the weights by class"
            )
        return torch.from_numpy(len(labels_N) / (len(classes) * count_C)).float()
    if unknown := [name for name in given if name not in classes]:
        raise RecipeError(f"{field}: {_shown(unknown)} is no class of the data (it has {_shown(classes)})")
    if missing := [name for name in classes if name not in given]:
        raise RecipeError(f"{field}: no weight for {_shown(missing)}, and every class needs one")
    return torch.tensor([given[name] for name in classes])


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
