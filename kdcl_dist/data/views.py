"""Views: what a student sees of a sample. The random numbers depend on the sample, not on the process.

Shapes: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdcl_dist.data.crops import CropFlip, is_of_torchvision
from kdcl_dist.data.cutout import Cutout
from kdcl_dist.data.dataset import ArrowDataset, ArrowSamples, ImageDataset
from kdcl_dist.data.sampling import Ids, view_seed
from kdcl_dist.data.view_seeds import view_seeds
from kdcl_dist.data.view_size import Growth, check_arguments, check_size
from kdcl_dist.errors import DataError, KdclError, RecipeError, one_line
from kdcl_dist.utils.import_strings import is_import_string, load_object
from kdcl_dist.utils.random_state import seed_generators
from kdcl_dist.utils.seeding import Purpose, derive

__all__ = ["Transforms", "Views", "draws_when_read", "read_sample"]

#: This package's own transforms, by the name in a recipe; called with the data set's mean and the arguments.
BUILT_IN = {"Cutout": Cutout}
#: Transforms that give the same result on the decoder's memory layout; all others get contiguous planes.
ANY_LAYOUT = ("RandomResizedCrop", "Resize")


class Transforms:
    """A list of transforms, built from a recipe's items `{name: ..., **arguments}`.

    Args:
        items: the transforms, in the order in which they are applied.
        mean_C: mean of each channel of the data set, pixels in [0, 1]; only `BUILT_IN` transforms need it.

    Raises:
        RecipeError: a name is unknown, or its arguments do not fit.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], mean_C: Sequence[float] = ()) -> None:
        self.items, self.mean_C = [dict(item) for item in items], tuple(mean_C)
        self.calls = [_build(position, item, self.mean_C) for position, item in enumerate(self.items)]
        self._growth = [
            Growth.of(item["name"], call, _arguments(item))
            for item, call in zip(self.items, self.calls, strict=True)
        ]
        # torchvision draws from torch's generator alone; a user's transform may draw from others too.
        self.foreign = any(is_import_string(item["name"]) for item in self.items)
        self.any_layout = bool(self.calls) and is_of_torchvision(self.calls[0], *ANY_LAYOUT)

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Apply all transforms to one image; raises `ValueError` where one makes a huge image from it."""
        view_CHW = image_CHW
        for call, growth in zip(self.calls, self._growth, strict=True):
            if growth is not None:
                growth.check(view_CHW)
            view_CHW = call(view_CHW)
            check_size(view_CHW, image_CHW)
            if self.any_layout and call is self.calls[0]:
                view_CHW = view_CHW.contiguous()
        return view_CHW

    def seeded(self, sample: Any, seed: int, sample_id: int, epoch: int) -> Any:
        """What the transforms make of one sample, after the global generators were seeded.

        Raises:
            DataError: a transform fails.
        """
        if self.foreign:
            seed_generators(seed)
        else:
            torch.default_generator.manual_seed(seed)
        try:
            return self(sample)
        except (Exception, SystemExit) as error:  # a user's transform can raise anything
            shape = f" of shape {tuple(sample.shape)}" if isinstance(sample, Tensor) else ""
            raise DataError(
                f"a transform fails on sample {sample_id}{shape}, epoch {epoch}: {one_line(error)}"
            ) from error

    def __reduce__(self) -> tuple[type[Transforms], tuple[Any, ...]]:
        return Transforms, (self.items, self.mean_C)


class Views:
    """One student's views of a data set, indexed by (epoch, sample id).

    The same index gives the same view in any process, in any order. Making a view seeds the global
    generators: later code that draws from them must seed them itself.

    Args:
        dataset: the images.
        transforms: applied to each image.
        seed: the student's seed, or one seed of all students for equal views.
        like: the images by whose mean and deviation batches are normalised, those of training; None: these.
    """

    def __init__(
        self, dataset: ImageDataset, transforms: Transforms, seed: int, like: ImageDataset | None = None
    ) -> None:
        self.dataset, self.transforms, self.seed = dataset, transforms, seed
        self.like = dataset if like is None else like
        raw = isinstance(dataset, ArrowDataset) and dataset.info.shape
        self._draws = draws_when_read(dataset)
        self._stored = bool(raw) and not transforms.items
        self._crop_flip = CropFlip.of(transforms.calls, raw) if raw else None

    def __reduce__(self) -> tuple[type[Views], tuple[Any, ...]]:
        return Views, (self.dataset, self.transforms, self.seed, self.like)

    def batch(self, epoch: int, ids_B: Ids) -> Tensor:
        """The views of several samples of an epoch, (B, C, H, W); each equals `self[epoch, sample_id]`.

        Raises:
            DataError: the views differ in size, or one cannot be read or transformed.
        """
        if self._stored:
            assert isinstance(self.dataset, ArrowDataset)
            return torch.from_numpy(self.dataset.stacked(ids_B))
        seeds_B = view_seeds(self.seed, epoch, ids_B)
        if self._crop_flip is not None:
            assert isinstance(self.dataset, ArrowDataset)
            return self._crop_flip([self.dataset.pixels(i) for i in ids_B.tolist()], seeds_B)
        views = [self._view(epoch, i, seed) for i, seed in zip(ids_B.tolist(), seeds_B, strict=True)]
        for sample_id, view_CHW in zip(ids_B.tolist(), views, strict=True):
            if view_CHW.shape != views[0].shape:
                raise DataError(
                    f"samples {int(ids_B[0])} and {sample_id} have shapes {tuple(views[0].shape)} and "
                    f"{tuple(view_CHW.shape)}: add a transform that gives all one size, such as "
                    "RandomResizedCrop in data.augment and Resize with CenterCrop in data.test_view"
                )
        return torch.stack(views) if views else torch.empty(0, 1, 1, 1)

    def __getitem__(self, index: tuple[int, int]) -> Tensor:
        epoch, sample_id = index
        return self._view(epoch, sample_id, view_seed(self.seed, epoch, sample_id))

    def _view(self, epoch: int, sample_id: int, seed: int) -> Tensor:
        image_CHW = self._image(sample_id, seed)
        if not self.transforms.items:
            return image_CHW
        view = self.transforms.seeded(image_CHW, seed, sample_id, epoch)
        if not isinstance(view, Tensor):
            raise DataError(
                f"the transforms give a {type(view).__name__} for sample {sample_id}, not a tensor"
            )
        return view

    def _image(self, sample_id: int, seed: int) -> Tensor:
        image_CHW: Tensor = read_sample(self.dataset.image, sample_id, seed if self._draws else None)
        return image_CHW if self.transforms.any_layout else image_CHW.contiguous()


def draws_when_read(dataset: Any) -> bool:
    """Whether a data set may draw random numbers when a sample is read: a user's own may, a file does not."""
    return not isinstance(getattr(dataset, "whole", dataset), (ArrowDataset, ArrowSamples))


def read_sample(read: Callable[[int], Any], sample_id: int, seed: int | None) -> Any:
    """One sample, as a data set's `image` or `sample` gives it.

    Args:
        read: the method.
        sample_id: of the sample.
        seed: of the view, by which all global generators are seeded for draws of the data set's own. None:
            it makes none.

    Raises:
        DataError: the data set fails.
    """
    if seed is not None:
        seed_generators(derive(seed, Purpose.READING))
    try:
        return read(sample_id)
    except KdclError:
        raise
    except (Exception, SystemExit) as error:  # a user's data set can raise anything
        raise DataError(f"the data set fails on sample {sample_id}: {one_line(error)}") from error


def _arguments(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "name"}


def _build(position: int, item: Mapping[str, Any], mean_C: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    name, arguments = item["name"], _arguments(item)
    factory: Any
    if is_import_string(name):
        factory = _load(position, name)
    elif name in BUILT_IN:
        factory = partial(BUILT_IN[name], mean_C)
    else:
        factory = _of_torchvision(position, name)
    try:
        if not is_import_string(name):
            check_arguments(name, arguments)
        built = factory(**arguments)
    except (Exception, SystemExit) as error:  # a constructor can raise anything
        raise RecipeError(f"transform {position}: {name} with {arguments}: {one_line(error)}") from error
    if not callable(built):
        raise RecipeError(
            f"transform {position}: {name} gives {type(built).__name__}, which cannot be called"
        )
    transform: Callable[[Tensor], Tensor] = built
    return transform


def _of_torchvision(position: int, name: str) -> Any:
    from torchvision.transforms import v2  # takes seconds, so only on use

    found = getattr(v2, name, None)
    if not (isinstance(found, type) and issubclass(found, v2.Transform)):
        raise RecipeError(
            f"transform {position}: {name!r} is neither a class of torchvision.transforms.v2 nor "
            f"{' or '.join(BUILT_IN)} nor an import string package.module:factory"
        )
    return found


def _load(position: int, name: str) -> Any:
    try:
        return load_object(name)
    except ImportError as error:
        raise RecipeError(f"transform {position}: {one_line(error)}") from error
