"""A torch map-style data set of `(x, y)`, torchvision's included, as images or as samples.

Shapes: N samples, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kdcl_dist.data.dataset import Dataset, ImageDataset
from kdcl_dist.data.samples import ALONE, Sample
from kdcl_dist.data.shards import check_range
from kdcl_dist.data.sources.cache import cache_folder
from kdcl_dist.data.sources.opened import Tell
from kdcl_dist.data.sources.sample_kind import RULE
from kdcl_dist.data.sources.torch_facts import Facts, find_facts
from kdcl_dist.data.sources.torch_reader import class_names, read
from kdcl_dist.errors import DataError
from kdcl_dist.utils.text import NAME, shown

__all__ = ["TorchImages", "TorchSamples", "open_torch"]


class _TorchSet:
    """A data set of `(x, y)` with what was found in it.

    Args:
        where: the data set, for messages.
        dataset: the data set.
        facts: what was found.
        classes: class names.
    """

    def __init__(self, where: str, dataset: Any, facts: Facts, classes: Sequence[str]) -> None:
        self.where, self.dataset, self.classes = where, dataset, tuple(classes)
        self.labels: npt.NDArray[np.int64] = np.array(facts.labels, np.int64)
        self.fingerprint, self.channels = facts.fingerprint, facts.channels

    def __len__(self) -> int:
        return len(self.labels)

    def _read(self, index: int) -> Sample:
        sample, label = read(self.where, self.dataset, index, self.channels or None)
        if label != self.labels[index]:
            raise DataError(
                f"{self.where}: sample {index} has the label {label}, which was {self.labels[index]} before: "
                f"a label must stay what it is; if the data has changed since, delete {cache_folder()}"
            )
        return sample


class TorchImages(_TorchSet):
    """Images of a torch data set; see `kdcl_dist.data.dataset.ImageDataset`.

    Args:
        scale: mean and deviation of each channel; None: those of these images.
    """

    def __init__(
        self,
        where: str,
        dataset: Any,
        facts: Facts,
        classes: Sequence[str],
        scale: ImageDataset | None = None,
    ) -> None:
        super().__init__(where, dataset, facts, classes)
        found = (facts.mean[ALONE], facts.std[ALONE]) if scale is None else (scale.mean, scale.std)
        self.mean, self.std = map(tuple, found)

    def image(self, index: int) -> Tensor:
        """One image, (C, H, W)."""
        sample = self._read(index)
        assert isinstance(sample, Tensor)
        return sample.clone()  # a data set may give the same tensor again


class TorchSamples(_TorchSet):
    """Samples of a torch data set that are no images; see `kdcl_dist.data.dataset.SampleDataset`."""

    def __init__(self, where: str, dataset: Any, facts: Facts, classes: Sequence[str]) -> None:
        super().__init__(where, dataset, facts, classes)
        self.mean, self.std = facts.mean, facts.std

    def sample(self, index: int) -> Sample:
        """One sample, as the data set gives it."""
        return self._read(index)


def open_torch(where: str, dataset: Any, train: Dataset | None, tell: Tell) -> Dataset:
    """A torch data set as one of this package.

    Args:
        where: the data set, for messages: an import string, or a field of the recipe.
        dataset: the data set.
        train: the training set, which has the classes, and the mean and deviation; None: this is it.
        tell: takes what was found.

    Raises:
        DataError: as `find_facts`; or a label is no class.
    """
    facts, how = find_facts(where, dataset, tell)
    classes = _classes(dataset, facts, train)
    check_range(where, np.array(facts.labels), len(classes))
    is_image = not facts.no_image
    opened: Dataset = (
        TorchImages(where, dataset, facts, classes, train if isinstance(train, ImageDataset) else None)
        if is_image
        else TorchSamples(where, dataset, facts, classes)
    )
    kind = (
        f"images of {facts.channels} channels"
        if is_image
        else f"samples, no images, as {facts.no_image} ({RULE})"
    )
    names = ", ".join(shown(name, NAME) for name in classes[:5]) + (", ..." if len(classes) > 5 else "")
    tell(f"{where}: {len(opened):,} {kind}; {len(classes)} classes ({names}); {how}")
    return opened


def _classes(dataset: Any, facts: Facts, train: Dataset | None) -> Sequence[str]:
    """The class names of a data set itself, else the training set's, else numbers."""
    numbers = tuple(map(str, range(max(facts.labels) + 1)))
    if train is None:
        own = class_names(dataset)
        return own if own is not None and len(own) >= len(numbers) else numbers
    known = tuple(train.classes)
    own = None if known == tuple(map(str, range(len(known)))) else class_names(dataset)
    return own if own is not None and len(own) >= len(numbers) else known
