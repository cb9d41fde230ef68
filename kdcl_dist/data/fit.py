"""Whether data sets fit each other, and whether a recipe's fields fit the kind of their samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import Dataset, ImageDataset
from kdcl_dist.data.first_samples import check_samples
from kdcl_dist.errors import DataError, RecipeError

__all__ = ["check_fit"]


def check_fit(recipe: Recipe, datasets: Mapping[str, Dataset]) -> None:
    """See that all data sets have the same classes and kind of samples, for which the recipe is.

    Args:
        recipe: the run.
        datasets: by the fields of `Data.sets`; "train" is among them.

    Raises:
        DataError: two data sets differ.
        RecipeError: a field is for samples of the other kind.
    """
    train = datasets["train"]
    for name, other in datasets.items():
        if tuple(train.classes) != tuple(other.classes) or _kind(train) != _kind(other):
            raise DataError(
                f"data.{name} has {len(other.classes)} classes and {_kind(other)}, data.train "
                f"{len(train.classes)} and {_kind(train)}: both must be the same, class names included"
            )
    if isinstance(train, ImageDataset):
        given = {"collate": recipe.data.collate, "normalise": recipe.data.normalise}
        _refuse(given, "is for samples that are no images, and those of data.train are images")
        return
    _refuse(
        {"mixup": recipe.data.mixup, "cutmix": recipe.data.cutmix},
        "is for images, and the samples of data.train are none",
    )
    _check_layouts(datasets)


def _check_layouts(datasets: Mapping[str, Any]) -> None:
    layouts = {name: check_samples(f"data.{name}", dataset) for name, dataset in datasets.items()}
    for name, layout in layouts.items():
        try:
            layouts["train"].joined(layout)
        except ValueError as error:
            raise DataError(
                f"data.train and data.{name} have samples that differ: {error}: they must have the same "
                "names, types and shapes, of which the first axis alone may differ"
            ) from error


def _refuse(fields: Mapping[str, Any], reason: str) -> None:
    for name, value in fields.items():
        if value:
            raise RecipeError(f"data.{name} {reason}: leave it out")


def _kind(dataset: Dataset) -> str:
    return (
        f"{dataset.channels} channels" if isinstance(dataset, ImageDataset) else "samples that are no images"
    )
