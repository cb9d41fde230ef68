"""The interfaces of a data set: what training asks of images, and of samples that are no images.

Shapes: N samples, C channels, H W image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kdcl_dist.data.arrow_images import ArrowDataset, Info, check_scale
from kdcl_dist.data.arrow_samples import ArrowSamples
from kdcl_dist.data.first_images import check_images
from kdcl_dist.data.first_samples import check_samples
from kdcl_dist.data.samples import Sample
from kdcl_dist.data.shards import check_range
from kdcl_dist.errors import DataError

__all__ = [
    "ArrowDataset",
    "ArrowSamples",
    "Dataset",
    "ImageDataset",
    "Info",
    "SampleDataset",
    "channels_of",
    "checked",
    "fingerprint",
]


@runtime_checkable
class ImageDataset(Protocol):
    """Images; a user's own data set of images is any object with these members."""

    labels: npt.NDArray[np.int64]

    @property
    def classes(self) -> Sequence[str]:
        """Class names; a label is an index into this list."""

    @property
    def channels(self) -> int:
        """Channels of every image."""

    @property
    def mean(self) -> Sequence[float]:
        """Mean of each channel, pixels in [0, 1]."""

    @property
    def std(self) -> Sequence[float]:
        """Standard deviation of each channel, pixels in [0, 1]."""

    def __len__(self) -> int:
        """Number of samples N."""

    def image(self, index: int) -> Tensor:
        """One image: uint8 (C, H, W), or floating point in [0, 1]; the caller may change it."""


@runtime_checkable
class SampleDataset(Protocol):
    """Samples that are no images; a user's own data set of such is any object with these members.

    It may also have `fingerprint`, text that differs for other data; and `mean` and `std`, numbers of the
    floating-point tensors by the names of `kdcl_dist.data.samples.named`, for `data.normalise`.
    """

    labels: npt.NDArray[np.int64]

    @property
    def classes(self) -> Sequence[str]:
        """Class names; a label is an index into this list."""

    def __len__(self) -> int:
        """Number of samples N."""

    def sample(self, index: int) -> Sample:
        """One sample: a tensor, or a tuple or a dict of tensors; the caller may change it.

        All samples have the same names, types and shapes; first axes alone may differ.
        """


Dataset = ImageDataset | SampleDataset


def checked(where: str, dataset: Any) -> Dataset:
    """A user's own data set, if it has what training needs.

    Args:
        where: the data set, for the message.
        dataset: any object.

    Raises:
        DataError: it lacks a member, its labels or class names are none, or its first samples are refused by
            `check_images` or `check_samples`.
    """
    if isinstance(dataset, ImageDataset):
        _check_labels(where, dataset)
        check_scale(where, dataset.mean, dataset.std, dataset.channels)
        check_images(where, dataset)
        return dataset
    if isinstance(dataset, SampleDataset):
        _check_labels(where, dataset)
        check_samples(where, dataset)
        return dataset
    of_images = hasattr(dataset, "image")
    wanted = ("__len__", "labels", "classes", *(("channels", "mean", "std") if of_images else ("sample",)))
    missing = [name for name in wanted if not hasattr(dataset, name)]
    raise DataError(f"{where}: {type(dataset).__name__} lacks {', '.join(missing)}")


def channels_of(dataset: Dataset) -> int | None:
    """Channels of a data set's images; None: its samples are no images."""
    return dataset.channels if isinstance(dataset, ImageDataset) else None


def fingerprint(dataset: Dataset) -> str:
    """The data set's `fingerprint` attribute, or a SHA-256 over labels and class names where it has none."""
    own: str | None = getattr(dataset, "fingerprint", None)
    parts = json.dumps(list(dataset.classes)).encode() + np.asarray(dataset.labels, np.int64).tobytes()
    return own or hashlib.sha256(parts).hexdigest()


def _check_labels(where: str, dataset: Dataset) -> None:
    labels = np.asarray(dataset.labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(dataset) or not len(labels):
        raise DataError(
            f"{where}: labels must be one whole number a sample, at least one "
            f"(got {labels.dtype} of shape {labels.shape} for {len(dataset)} samples)"
        )
    check_range(where, labels, len(dataset.classes))
    names = [str(name) for name in dataset.classes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: classes names {', '.join(map(repr, twice[:3]))} more than once")
