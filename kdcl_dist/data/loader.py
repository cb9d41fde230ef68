"""Batches of one student's views, made in this process or in worker processes with the same result.

Shapes: B batch, C channels, H W image.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from kdcl_dist.data.dataset import ImageDataset
from kdcl_dist.data.sampling import Ids
from kdcl_dist.data.views import Views
from kdcl_dist.errors import KdclError
from kdcl_dist.utils.process import end_with_parent

__all__ = ["Batch", "Part", "batches", "mixed_batches"]

#: Pixels that are normalised at a time: few enough to stay in a core's cache from one pass to the next.
CACHED_PIXELS = 1 << 16


class Batch(NamedTuple):
    """ids_B int64, labels_B int64, images_BCHW float32, normalised."""

    ids: Tensor
    labels: Tensor
    images: Tensor


class Part(NamedTuple):
    """What to load: of which views (a place in their list), in which epoch, which samples."""

    views: int
    epoch: int
    ids_B: Ids


def batches(
    views: Views, schedule: Iterable[tuple[int, Ids]], *, workers: int = 0, timeout_s: float = 0
) -> Iterator[Batch]:
    """One batch for each (epoch, ids_B) of the schedule, in order; as `mixed_batches`."""
    parts = (Part(0, epoch, ids_B) for epoch, ids_B in schedule)
    return mixed_batches([views], parts, workers=workers, timeout_s=timeout_s)


def mixed_batches(
    views: Sequence[Views], schedule: Iterable[Part], *, workers: int = 0, timeout_s: float = 0
) -> Iterator[Batch]:
    """One batch for each part of the schedule, in order, all by the same workers.

    Args:
        views: what is loaded.
        schedule: may be endless; it is read a few batches ahead when there are workers.
        workers: processes that load; 0 loads in this one.
        timeout_s: seconds after which a worker's batch counts as stuck; 0 is no limit.

    Raises:
        DataError: images of a batch differ in size, or one cannot be read or transformed.
    """
    load = _Load(views)
    here = map(load.__getitem__, schedule)
    for loaded in here if workers == 0 else _processes(load, schedule, workers, timeout_s):
        if isinstance(loaded, KdclError):
            raise loaded
        part, images_BCHW = loaded
        yield _batch(views[part.views].dataset, part.ids_B, images_BCHW)


def _processes(load: _Load, schedule: Iterable[Part], workers: int, timeout_s: float) -> Iterable[_Loaded]:
    return DataLoader(
        load,  # type: ignore[arg-type]
        batch_size=None,
        sampler=_Plan(schedule),
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context=_context(),
        worker_init_fn=_begin,
        timeout=timeout_s,
    )


def _context() -> Any:
    """Workers are forked from a server that has imported what they need, and no thread or GPU state."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _begin(_worker: int) -> None:
    """End a worker when the process that loads from it dies, however it dies.

    What the worker has of the server it was forked from stays shared: no collection of garbage touches it.
    """
    gc.freeze()
    end_with_parent()


def _as_it_is(loaded: Any) -> Any:
    return loaded


#: What a worker sends: a part and its normalised images_BCHW; or an error, which would lose its fields if
#: it were raised there.
_Loaded = tuple[Part, Tensor] | KdclError


class _Load:
    """The views as a data set whose samples are whole batches; an error takes a batch's place."""

    def __init__(self, views: Sequence[Views]) -> None:
        self.views = views

    def __getitem__(self, part: Part) -> _Loaded:
        views = self.views[part.views]
        try:
            images_BCHW = views.batch(part.epoch, part.ids_B)
        except KdclError as error:
            return error
        return part, normalise(images_BCHW, views.dataset.mean, views.dataset.std)


class _Plan:
    """The schedule as a sampler."""

    def __init__(self, schedule: Iterable[Part]) -> None:
        self.schedule = schedule

    def __iter__(self) -> Iterator[Part]:
        return iter(self.schedule)


def _batch(dataset: ImageDataset, ids_B: Ids, images_BCHW: Tensor) -> Batch:
    labels_B = torch.from_numpy(np.asarray(dataset.labels, np.int64)[ids_B])
    return Batch(torch.from_numpy(ids_B), labels_B, images_BCHW)


def normalise(images_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images with zero mean and unit deviation, float32; uint8 counts as 0..255, anything else as 0..1."""
    mean_C11, std_C11 = (torch.tensor(value)[:, None, None] for value in (mean, std))
    out_BCHW = _empty(images_BCHW.shape)
    count = max(1, CACHED_PIXELS // max(1, images_BCHW[:1].numel()))
    for start in range(0, len(out_BCHW), count):
        out = out_BCHW[start : start + count].copy_(images_BCHW[start : start + count])
        if images_BCHW.dtype == torch.uint8:
            out.div_(255)
        out.sub_(mean_C11).div_(std_C11)
    return out_BCHW


def _empty(shape: Sequence[int]) -> Tensor:
    """Room for float32; a loader process takes it in the shared memory by which it sends, to spare a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.float32)
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.float32).set_(storage).view(shape)
