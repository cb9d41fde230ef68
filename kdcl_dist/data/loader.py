"""Batches of one student's views, made in this process or in worker processes with the same result.

Shapes: B batch, C channels, H W image.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdcl_dist.data.dataset import ImageDataset
from kdcl_dist.data.streams import Ids
from kdcl_dist.data.views import Views
from kdcl_dist.errors import DataError, KdclError
from kdcl_dist.orphans import end_with_parent

__all__ = ["Batch", "batches"]


class Batch(NamedTuple):
    """ids_B int64, labels_B int64, images_BCHW float32, normalised."""

    ids: Tensor
    labels: Tensor
    images: Tensor


def batches(
    views: Views, plan: Iterable[tuple[int, Ids]], *, workers: int = 0, timeout_s: float = 0
) -> Iterator[Batch]:
    """One batch for each (epoch, ids_B) of the plan, in order.

    Args:
        views: what is loaded.
        plan: may be endless; it is read a few batches ahead when there are workers.
        workers: processes that load; 0 loads in this one.
        timeout_s: seconds after which a worker's batch counts as stuck; 0 is no limit.

    Raises:
        DataError: images of a batch differ in size, or one cannot be read or transformed.
    """
    if workers == 0:
        for epoch, ids_B in plan:
            yield _batch(views.dataset, _Collate()([_Sample(views)[epoch, int(i)] for i in ids_B]))
        return
    loader: Iterable[_Loaded] = DataLoader(
        _Sample(views),  # type: ignore[arg-type]
        batch_sampler=_Indices(plan),
        num_workers=workers,
        collate_fn=_Collate(),
        multiprocessing_context=_context(),
        worker_init_fn=_begin,
        timeout=timeout_s,
    )
    for loaded in loader:
        yield _batch(views.dataset, loaded)


def _context() -> Any:
    """Workers are forked from a server that has imported what they need, and no thread or GPU state."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _begin(_worker: int) -> None:
    """End a worker when the process that loads from it dies, however it dies."""
    end_with_parent()


#: What a worker sends: ids_B and images_BCHW; or an error, which would lose its fields if raised there.
_Loaded = tuple[Tensor, Tensor] | KdclError


class _Sample:
    """Views together with their id; an error takes the view's place."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __getitem__(self, index: tuple[int, int]) -> tuple[int, Tensor | KdclError]:
        try:
            return index[1], self.views[index]
        except KdclError as error:
            return index[1], error


class _Indices:
    """The plan as a batch sampler: lists of (epoch, id)."""

    def __init__(self, plan: Iterable[tuple[int, Ids]]) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch, ids_B in self.plan:
            yield [(epoch, int(sample_id)) for sample_id in ids_B]


class _Collate:
    """Stack a batch's images, which must be of one size."""

    def __call__(self, samples: Sequence[tuple[int, Tensor | KdclError]]) -> _Loaded:
        images: list[Tensor] = []
        for sample_id, image_CHW in samples:
            if isinstance(image_CHW, KdclError):
                return image_CHW
            images.append(image_CHW)
            if image_CHW.shape != images[0].shape:
                return DataError(
                    f"samples {samples[0][0]} and {sample_id} have shapes {tuple(images[0].shape)} and "
                    f"{tuple(image_CHW.shape)}: add a transform that gives all one size, such as "
                    "RandomResizedCrop in data.augment and Resize with CenterCrop in data.test_view"
                )
        ids_B = torch.tensor([sample_id for sample_id, _ in samples], dtype=torch.int64)
        return ids_B, torch.stack(images) if images else torch.empty(0, 1, 1, 1)


def _batch(dataset: ImageDataset, loaded: _Loaded) -> Batch:
    if isinstance(loaded, KdclError):
        raise loaded
    ids_B, images_BCHW = loaded
    labels_B = torch.from_numpy(np.asarray(dataset.labels, np.int64)[ids_B.numpy()])
    return Batch(ids_B, labels_B, normalise(images_BCHW, dataset.mean, dataset.std))


def normalise(images_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images with zero mean and unit deviation, float32; uint8 counts as 0..255, anything else as 0..1."""
    if images_BCHW.dtype == torch.uint8:
        images_BCHW = images_BCHW.float().div_(255)
    mean_C11, std_C11 = (torch.tensor(value)[:, None, None] for value in (mean, std))
    return images_BCHW.float().sub(mean_C11).div_(std_C11)
