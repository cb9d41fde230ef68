"""Some classes of a data set, as a data set of their own.

Shapes: N samples, C channels, H W image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from kdcl_dist.data.dataset import Dataset, ImageDataset, fingerprint
from kdcl_dist.data.samples import Sample
from kdcl_dist.errors import DataError

__all__ = ["ClassSubset", "SampleSubset", "Subset", "of_classes"]


class Subset:
    """The samples of the named classes, in the data set's order; mean and std are those of the whole.

    Args:
        dataset: the whole data set.
        names: class names; a label is an index into this list.

    Raises:
        DataError: a name is not a class of the data set, or no sample is left.
    """

    def __init__(self, dataset: Any, names: Sequence[str]) -> None:
        known = list(dataset.classes)
        if unknown := [name for name in names if name not in known]:
            shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise DataError(
                f"data.classes: {', '.join(unknown)} is no class of the data set (it has {shown})"
            )
        self.whole, self.classes = dataset, tuple(names)
        self.mean, self.std = getattr(dataset, "mean", ()), getattr(dataset, "std", ())
        new_labels = np.full(len(known), -1)
        new_labels[[known.index(name) for name in names]] = np.arange(len(names))
        labels_N = new_labels[np.asarray(dataset.labels, np.int64)]
        self.ids = np.flatnonzero(labels_N >= 0)
        self.labels = labels_N[self.ids]
        if not len(self.ids):
            raise DataError(f"data.classes: the data set has no samples of {', '.join(names)}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over the whole data set's fingerprint and the class names."""
        parts = f"{fingerprint(self.whole)} {json.dumps(self.classes)}"
        return hashlib.sha256(parts.encode()).hexdigest()


class ClassSubset(Subset):
    """Images of the named classes; arguments and errors as `Subset`."""

    @property
    def channels(self) -> int:
        """Channels of every image."""
        channels: int = self.whole.channels
        return channels

    def image(self, index: int) -> Tensor:
        """One image, (C, H, W), as the whole data set gives it."""
        image_CHW: Tensor = self.whole.image(int(self.ids[index]))
        return image_CHW


class SampleSubset(Subset):
    """Samples of the named classes; arguments and errors as `Subset`."""

    def sample(self, index: int) -> Sample:
        """One sample, as the whole data set gives it."""
        sample: Sample = self.whole.sample(int(self.ids[index]))
        return sample


def of_classes(dataset: Dataset, names: Sequence[str] | None) -> Dataset:
    """The samples of the named classes of a data set; all of them if `names` is None."""
    if names is None:
        return dataset
    kind = ClassSubset if isinstance(dataset, ImageDataset) else SampleSubset
    return kind(dataset, names)
