"""The images of each step, and their way to a detector.

Shapes: H W image, N boxes of an image.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from examples.detection.coco import Split
from examples.detection.recipe import DetectionRecipe
from kdcl_dist.data.decode import decode
from kdcl_dist.errors import DataError, KdclError, one_line
from kdcl_dist.utils.process import end_with_parent
from kdcl_dist.utils.seeding import Purpose, derive, permutation

__all__ = ["Batch", "Images", "Sample", "epoch_steps", "load"]

Target = dict[str, Tensor]
#: Indices of images in a split.
Batch = Sequence[int] | npt.NDArray[np.int64]


class Sample(NamedTuple):
    """An image, uint8 (3, H, W); its number in the split; and its target.

    The target has boxes float32 (N, 4) as x1, y1, x2, y2, labels int64 (N,) and, for masks, masks uint8
    (N, H, W).
    """

    number: int
    image: Tensor
    target: Target


def epoch_steps(split: Split, recipe: DetectionRecipe, epoch: int) -> list[npt.NDArray[np.int64]]:
    """The images of each step of an epoch, in order: a pure function of seed and epoch.

    Where possible a step's images are all wide or all high, so that little is padded. Images that fill no
    whole step are left out; they differ in each epoch.

    Raises:
        DataError: fewer images have boxes than a step needs.
    """
    size = recipe.images_per_step
    known = np.flatnonzero(split.annotated)
    if len(known) < size:
        raise DataError(
            f"{split.path.name}: {len(known)} images have a box to learn from, fewer than a step's {size}: "
            "lower workers or images_per_worker"
        )
    order = known[permutation(len(known), recipe.seed, Purpose.EPOCH_ORDER, epoch)]
    wide, high = order[split.wide[order]], order[~split.wide[order]]
    full = [part[: len(part) // size * size] for part in (wide, high)]
    rest = np.concatenate([wide[len(full[0]) :], high[len(full[1]) :]])
    steps = np.concatenate([*full, rest[: len(rest) // size * size]]).reshape(-1, size)
    return list(steps[permutation(len(steps), recipe.seed, Purpose.WINDOW_ORDER, epoch)])


class Images:
    """Samples of a split; a context of `load`.

    Args:
        split: the images.
        recipe: whether there are masks, and the seed of the flips.
        epoch: epoch of training, in which half of the images are mirrored; None: no image is mirrored.
        targets: whether samples have targets.
    """

    def __init__(
        self, split: Split, recipe: DetectionRecipe, epoch: int | None = None, *, targets: bool = True
    ) -> None:
        self.split, self.masks, self.seed, self.epoch = split, recipe.masks, recipe.seed, epoch
        self.targets = targets

    def __getitem__(self, index: int) -> Sample:
        """Raises `DataError` when the image cannot be read or is not of the size that is annotated."""
        row = self.split[index]
        image_CHW = self._image(row)
        target = _target(row, self.masks) if self.targets else {}
        if self.epoch is not None and derive(self.seed, Purpose.VIEW, self.epoch, int(index)) % 2:
            image_CHW, target = _mirrored(image_CHW, target)
        return Sample(int(index), image_CHW, target)

    def _image(self, row: dict[str, Any]) -> Tensor:
        path = self.split.path / row["file"]
        try:
            pixels_HWC = decode(path.read_bytes(), channels=3)
        except (OSError, ValueError) as error:
            raise DataError(f"image {str(path)!r} cannot be read: {one_line(error)}") from None
        height, width = pixels_HWC.shape[:2]
        if (height, width) != (row["height"], row["width"]):
            raise DataError(
                f"image {str(path)!r} is {width}x{height}, but annotated as {row['width']}x{row['height']}"
            )
        return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def load(
    images: Images,
    batches: Sequence[Batch],
    *,
    workers: int,
    timeout_s: float,
) -> Iterator[list[Sample]]:
    """The samples of each batch, in order.

    Args:
        images: the samples.
        batches: indices in the split.
        workers: processes that load; 0 loads in this one.
        timeout_s: seconds after which a process's batch counts as stuck.

    Raises:
        DataError: as `Images`.
    """
    if workers == 0:
        for batch in batches:
            yield [images[index] for index in batch]
        return
    context = multiprocessing.get_context("forkserver")  # without this process's threads and GPU state
    context.set_forkserver_preload([__name__])
    loader: DataLoader[Any] = DataLoader(
        _Guarded(images),  # type: ignore[arg-type]
        batch_sampler=[[int(index) for index in batch] for batch in batches],
        num_workers=min(workers, len(batches)),
        collate_fn=list,
        multiprocessing_context=context,
        worker_init_fn=_begin,
        timeout=timeout_s,
    )
    for loaded in loader:
        for sample in loaded:
            if isinstance(sample, KdclError):
                raise sample
        yield loaded


def _begin(_worker: int) -> None:
    """End a loading process when its parent dies."""
    end_with_parent()


class _Guarded:
    """Samples; returns an error instead of the sample, since one raised in a loader loses its fields."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, index: int) -> Sample | KdclError:
        try:
            return self.images[index]
        except KdclError as error:
            return error


def _target(row: dict[str, Any], masks: bool) -> Target:
    target = {
        "boxes": torch.tensor(row["boxes"], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(row["labels"], dtype=torch.int64),
    }
    if masks:
        size = row["height"], row["width"]
        found = [np.zeros((0, *size), np.uint8), *(_mask(item, *size)[None] for item in row["segmentations"])]
        target["masks"] = torch.from_numpy(np.concatenate(found))
    return target


def _mask(segmentation: Any, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Polygons or run lengths as a mask, uint8 (H, W)."""
    from pycocotools import mask as coco_mask

    try:
        if isinstance(segmentation, list):
            runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            runs = coco_mask.frPyObjects(segmentation, height, width)
        else:
            runs = segmentation
        mask_HW: npt.NDArray[np.uint8] = coco_mask.decode(runs)
    except (ValueError, TypeError) as error:
        raise DataError(f"a segmentation cannot be decoded: {one_line(error)}") from None
    return mask_HW


def _mirrored(image_CHW: Tensor, target: Target) -> tuple[Tensor, Target]:
    width = image_CHW.shape[2]
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    mirrored = target | {"boxes": torch.stack([width - x2, y1, width - x1, y2], dim=1)}
    if "masks" in target:
        mirrored["masks"] = target["masks"].flip(2)
    return image_CHW.flip(2), mirrored
