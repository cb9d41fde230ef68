"""Views of samples that are no images, collated into batches. Random numbers depend on the sample alone.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from kdcl_dist.config.collate import CollateSpec
from kdcl_dist.data.dataset import Dataset, ImageDataset, SampleDataset
from kdcl_dist.data.samples import Collate, Inputs, Sample, map_tensors, named
from kdcl_dist.data.sampling import Ids, view_seed
from kdcl_dist.data.statistics import Scale
from kdcl_dist.data.view_seeds import view_seeds
from kdcl_dist.data.views import Transforms, Views, draws_when_read, read_sample
from kdcl_dist.errors import DataError, RecipeError, one_line
from kdcl_dist.utils.import_strings import is_import_string, load_object

__all__ = ["AnyViews", "OwnCollate", "SampleViews", "collate_of", "transforms_of"]


class SampleViews:
    """One student's views of a data set, indexed by (epoch, sample id).

    The same index gives the same view in any process, in any order, as `Views` does of images.

    Args:
        dataset: the samples.
        transforms: of the user's own, applied to each sample.
        seed: the student's seed, or one seed of all students for equal views.
        collate: makes a batch of a list of views.
        scale: applied to each view after its transforms. None: the numbers are left as they are.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        transforms: Transforms,
        seed: int,
        collate: Callable[[Sequence[Sample]], Inputs],
        scale: Scale | None = None,
    ) -> None:
        self.dataset, self.transforms, self.seed = dataset, transforms, seed
        self.collate, self.scale = collate, scale
        self._draws = draws_when_read(dataset)

    def batch(self, epoch: int, ids_B: Ids) -> Inputs:
        """The views of several samples of an epoch as one batch; B may be 0.

        Raises:
            DataError: a sample cannot be read or transformed, or the views do not make a batch.
        """
        if not len(ids_B):
            return map_tensors(self.batch(epoch, np.zeros(1, np.int64)), lambda tensor: tensor[:0])
        ids, seeds = ids_B.tolist(), view_seeds(self.seed, epoch, ids_B)
        views = [self._view(epoch, sample_id, seed) for sample_id, seed in zip(ids, seeds, strict=True)]
        for sample_id, view in zip(ids, views, strict=True):
            if type(view) is not type(views[0]) or named(view).keys() != named(views[0]).keys():
                raise DataError(
                    f"views of samples {ids[0]} and {sample_id} have other tensors, or other names"
                )
        try:
            inputs = self.collate(views)
        except (Exception, SystemExit) as error:  # a user's collate can raise anything
            reason = str(error) if isinstance(error, ValueError) else one_line(error)
            first = ", ".join(map(str, ids[:3]))
            raise DataError(
                f"data.collate: {len(ids)} samples ({first}, ...) make no batch: {reason}"
            ) from error
        _check_batch(inputs, len(ids))
        return inputs

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        epoch, sample_id = index
        return self._view(epoch, sample_id, view_seed(self.seed, epoch, sample_id))

    def _view(self, epoch: int, sample_id: int, seed: int) -> Sample:
        view = read_sample(self.dataset.sample, sample_id, seed if self._draws else None)
        if self.transforms.items:
            view = self.transforms.seeded(view, seed, sample_id, epoch)
        if not isinstance(view, (Tensor, tuple, dict)):
            raise DataError(
                f"the transforms give a {type(view).__name__} for sample {sample_id}, not a tensor, or a "
                "tuple or a dict of tensors"
            )
        return view if self.scale is None else self.scale(view)


#: Views of either kind of data set.
AnyViews = Views | SampleViews


class OwnCollate:
    """A function of the user's own that makes a batch of a list of samples.

    Args:
        text: its import string.

    Raises:
        RecipeError: it cannot be imported, or is no function.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.function: Any = load_object(text)
        except ImportError as error:
            raise RecipeError(f"data.collate: {one_line(error)}") from error
        if not callable(self.function):
            raise RecipeError(f"data.collate: {text!r} is a {type(self.function).__name__}, no function")

    def __call__(self, samples: Sequence[Sample]) -> Inputs:
        """What the function gives."""
        inputs: Inputs = self.function(list(samples))
        return inputs

    def __reduce__(self) -> tuple[type[OwnCollate], tuple[str]]:
        return OwnCollate, (self.text,)


def collate_of(spec: CollateSpec | None) -> Callable[[Sequence[Sample]], Inputs]:
    """What a recipe's `data.collate` makes batches with; errors as `OwnCollate`."""
    if isinstance(spec, str):
        return OwnCollate(spec)
    return Collate() if spec is None else Collate(spec.values, spec.length)


def transforms_of(dataset: Dataset, items: Sequence[Mapping[str, Any]]) -> Transforms:
    """The transforms of a recipe's items for samples of a data set.

    Raises:
        RecipeError: as `Transforms`; or the samples are no images, and one is none of the user's own.
    """
    if isinstance(dataset, ImageDataset):
        return Transforms(items, dataset.mean)
    for position, item in enumerate(items):
        if not is_import_string(item["name"]):
            raise RecipeError(
                f"transform {position}: {item['name']} is for images, and the samples are none: use an "
                "import string package.module:factory"
            )
    return Transforms(items)


def _check_batch(inputs: Any, count: int) -> None:
    if not isinstance(inputs, (Tensor, tuple, dict)) or not named(inputs):
        raise DataError(
            f"data.collate gives a {type(inputs).__name__}, not a tensor, a tuple or a dict of them"
        )
    for name, tensor in named(inputs).items():
        if not isinstance(tensor, Tensor) or not tensor.ndim or len(tensor) != count:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise DataError(
                f"data.collate gives {name!r} as {found} for {count} samples: its first axis must be {count}"
            )
