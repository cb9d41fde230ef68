"""What an exported network takes, made of image files or of a data set's samples as its description says.

Shapes: B samples, C channels, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.data.dataset import Dataset, ImageDataset
from kdcl_dist.data.decode import MAX_FILE_BYTES, decode
from kdcl_dist.data.layout import Layout
from kdcl_dist.data.loader import normalise
from kdcl_dist.data.sample_views import AnyViews, SampleViews, collate_of, transforms_of
from kdcl_dist.data.samples import Inputs, Sample, like, named
from kdcl_dist.data.statistics import Scale
from kdcl_dist.data.views import Views
from kdcl_dist.errors import DataError, ExportError, RecipeError, one_line
from kdcl_dist.export.preprocessing import Description
from kdcl_dist.utils.files import read_regular

__all__ = ["Images", "Preparation", "preparation_of"]

#: Samples in a batch, and the numbers in all of a batch of images: fewer images that are large.
BATCH, BATCH_NUMBERS = 64, 50_000_000


class Images:
    """Image files as a data set without labels.

    Args:
        paths: the files.
        description: of the export that they are for.
    """

    def __init__(self, paths: Sequence[Path], description: Description) -> None:
        assert description.channels is not None, "the export takes images"
        self.paths, self.channels, self.classes = paths, description.channels, description.classes
        self.mean: Any = description.mean
        self.std: Any = description.std
        self.labels = np.zeros(len(paths), np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Tensor:
        """One image, uint8 (C, H, W)."""
        try:
            pixels_HWC = decode(read_regular(self.paths[index], MAX_FILE_BYTES), self.channels)
        except (OSError, ValueError) as error:
            text = str(error) if isinstance(error, ValueError) else one_line(error)
            raise DataError(f"unreadable: {text}") from error
        return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()


class Preparation(Protocol):
    """How a data set's samples become an exported network's inputs.

    Attributes:
        batch_size: samples to stack at a time.
    """

    batch_size: int

    def views(self, dataset: Dataset, number: int = 0) -> Iterator[Sample | DataError]:
        """A view of each sample, the one with a number, or an error where the network cannot take it."""

    def stacked(self, views: Sequence[Any]) -> Inputs:
        """The batch of some views."""


def preparation_of(folder: Path, description: Description) -> Preparation:
    """The preparation of an export.

    Args:
        folder: of the export, for errors.
        description: its own.

    Raises:
        ExportError: `views` raises it where the transforms of the test view cannot be built.
    """
    return _OfImages(folder, description) if description.inputs is None else _OfSamples(folder, description)


class _OfImages:
    def __init__(self, folder: Path, description: Description) -> None:
        self.folder, self.description = folder, description
        self.shape = description.input_shape or (1, 1, 1)
        self.batch_size = max(1, min(BATCH, BATCH_NUMBERS // math.prod(self.shape)))

    def views(self, dataset: Dataset, number: int = 0) -> Iterator[Sample | DataError]:
        """Views (C, H, W) of the network's size."""
        assert isinstance(dataset, ImageDataset)
        with _building(self.folder):
            views = Views(dataset, transforms_of(dataset, self.description.test_view), self.description.seed)
        for view in _each(views, len(dataset), number):
            if isinstance(view, Tensor) and tuple(view.shape) != self.shape:
                sizes = ["x".join(map(str, shape)) for shape in (view.shape, self.shape)]
                yield DataError(
                    f"{sizes[0]} after the test view, but the network takes {sizes[1]}: resize it, or "
                    "give the recipe a data.test_view that does"
                )
            else:
                yield view

    def stacked(self, views: Sequence[Any]) -> Inputs:
        """Normalised images (B, C, H, W)."""
        mean, std = self.description.mean, self.description.std
        assert isinstance(mean, list)
        assert isinstance(std, list)
        return normalise(torch.stack(list(views)), mean, std)


class _OfSamples:
    def __init__(self, folder: Path, description: Description) -> None:
        self.folder, self.description, self.batch_size = folder, description, BATCH
        self.lengths = description.lengths or {}
        with _building(folder):
            self.collate = collate_of(description.collate)
        spec = description.collate
        self.values = {} if spec is None or isinstance(spec, str) else spec.values

    def views(self, dataset: Dataset, number: int = 0) -> Iterator[Sample | DataError]:
        """Views of the layout that the network takes."""
        assert not isinstance(dataset, ImageDataset)
        mean, std, seed = self.description.mean, self.description.std, self.description.seed
        scale = Scale(mean, std) if isinstance(mean, dict) and isinstance(std, dict) else None
        with _building(self.folder):
            transforms = transforms_of(dataset, self.description.test_view)
        views = SampleViews(dataset, transforms, seed, self.collate, scale)
        for view in _each(views, len(dataset), number):
            yield view if isinstance(view, DataError) else self._checked(view)

    def _checked(self, view: Sample) -> Sample | DataError:
        """The view, or an error that says why it is too long; `DataError` if it is of another layout."""
        wanted, found = self.description.inputs, Layout.of(view)
        assert wanted is not None
        with suppress(ValueError):
            if wanted.joined(found) == wanted:
                return self._too_long(self.collate([view])) or view
        raise DataError(f"{self.folder}: the network takes a {wanted}, and the data set has a {found}")

    def _too_long(self, inputs: Inputs) -> DataError | None:
        for name, length in self.lengths.items():
            if (found := named(inputs)[name].shape[1]) > length:
                return DataError(
                    f"{name} is of {found}, and this file takes {length} at most: cut it, or export the "
                    "student as state_dict, which takes any length"
                )
        return None

    def stacked(self, views: Sequence[Any]) -> Inputs:
        """The collated batch; sequences of one length only are padded to it."""
        inputs = self.collate(list(views))
        tensors = dict(named(inputs))
        for name, length in self.lengths.items():
            value, missing = self.values.get(name, 0), length - tensors[name].shape[1]
            pad = partial(F.pad, pad=(0, 0) * (tensors[name].ndim - 2) + (0, missing))
            tensors[name] = pad(tensors[name], value=value)
        return like(inputs, tensors)


@contextmanager
def _building(folder: Path) -> Iterator[None]:
    """Fields of a description that cannot be built as a mistake of the export."""
    try:
        yield
    except RecipeError as error:
        raise ExportError(f"{folder}: test_view: {error.message}; export it again") from error


def _each(views: AnyViews, count: int, number: int) -> Iterator[Sample | DataError]:
    """Each view, or the error in its place."""
    for index in range(count):
        try:
            yield views[number, index]
        except DataError as error:
            yield error
