"""Batches of one student's views, made in this process or in worker processes with the same result.

Shapes: B batch, C channels, H W image.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from kdcl_dist.data.dataset import Dataset
from kdcl_dist.data.mixing import Mix
from kdcl_dist.data.sample_views import AnyViews, SampleViews
from kdcl_dist.data.samples import Inputs
from kdcl_dist.data.sampling import Ids
from kdcl_dist.errors import DataError, KdclError, one_line
from kdcl_dist.utils.pickling import unpicklable_part
from kdcl_dist.utils.process import end_with_parent, share_folder

__all__ = ["Batch", "BatchSpec", "batches", "mixed_batches", "normalise"]

#: Pixels that are normalised at a time: few enough to stay in a core's cache between passes.
CACHED_PIXELS = 1 << 16


class Batch(NamedTuple):
    """ids_B int64, labels_B int64, and the inputs of the network; images_BCHW are float32, normalised.

    `loss_labels` are what a loss takes: the labels, or class probabilities (B, C) where a run mixes samples.
    `load_s` is how long the process that made the inputs took, in seconds.
    """

    ids: Tensor
    labels: Tensor
    inputs: Inputs
    loss_labels: Tensor
    load_s: float


class BatchSpec(NamedTuple):
    """One batch to load: index into the list of views, epoch, sample ids, and how the samples are mixed."""

    views: int
    epoch: int
    ids_B: Ids
    mix: Mix | None = None


def batches(
    views: AnyViews, schedule: Iterable[tuple[int, Ids]], *, workers: int = 0, timeout_s: float = 0
) -> Iterator[Batch]:
    """One batch of `views` for each (epoch, ids_B) of the schedule; otherwise as `mixed_batches`."""
    specs = (BatchSpec(0, epoch, ids_B) for epoch, ids_B in schedule)
    return mixed_batches([views], specs, workers=workers, timeout_s=timeout_s)


def mixed_batches(
    views: Sequence[AnyViews], schedule: Iterable[BatchSpec], *, workers: int = 0, timeout_s: float = 0
) -> Generator[Batch]:
    """One batch for each item of the schedule, in order, all loaded by the same workers.

    Args:
        views: all views that the schedule refers to.
        schedule: may be endless; with workers it is read a few batches ahead.
        workers: processes that load; 0 loads in this process.
        timeout_s: seconds after which a worker's batch counts as stuck; 0 means no limit.

    Raises:
        DataError: samples of a batch differ in size, one cannot be read or transformed, or the workers cannot
            have a copy of the data set.
    """
    load = _BatchDataset(views)
    here = map(load.__getitem__, schedule)
    for loaded in here if workers == 0 else _data_loader(load, schedule, workers, timeout_s):
        if isinstance(loaded, KdclError):
            raise loaded
        spec, inputs, load_s = loaded
        yield _batch(views[spec.views].dataset, spec, inputs, load_s)


def _data_loader(
    load: _BatchDataset, schedule: Iterable[BatchSpec], workers: int, timeout_s: float
) -> Iterator[_Loaded]:
    loader: DataLoader[_Loaded] = DataLoader(
        load,  # type: ignore[arg-type]
        batch_size=None,
        sampler=_ScheduleSampler(schedule),
        num_workers=workers,
        collate_fn=_unchanged,
        multiprocessing_context=_context(),
        worker_init_fn=_initialise_worker,
        timeout=timeout_s,
        # In a process that computes on a GPU a thread takes the batches and copies them to where the GPU
        # reads them; else a student does both in the middle of its step.
        pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # the error below says more
            return iter(loader)
    except Exception as error:  # pickling runs a user's code
        if (part := unpicklable_part(load)) is None:
            raise
        raise DataError(
            f"data.loader_workers: loader processes need a copy of the data set, and {part} cannot be "
            f"pickled ({one_line(error)}): set data.loader_workers to 0, or leave it out in __getstate__"
        ) from error


def _context() -> Any:
    """Workers are forked from a server that has imported their modules, and holds no threads or GPU state.

    Where this process has imported torchvision's transforms, the workers need them too: 1.4 s in each.
    """
    context = multiprocessing.get_context("forkserver")
    transforms = "torchvision.transforms.v2"
    context.set_forkserver_preload([__name__, *([transforms] if transforms in sys.modules else [])])
    share_folder()
    return context


def _initialise_worker(_worker: int) -> None:
    """End a worker when its parent process dies for any reason.

    Objects inherited from the fork server are exempt from garbage collection, so that their pages stay
    shared.
    """
    gc.freeze()
    end_with_parent()


def _unchanged(loaded: Any) -> Any:
    return loaded


#: What a worker sends: the spec, its inputs and the seconds that they took, or an error. An error that is
#: raised in a worker would lose its fields.
_Loaded = tuple[BatchSpec, Inputs, float] | KdclError


class _BatchDataset:
    """The views as a data set whose samples are whole batches; an error is returned in place of a batch."""

    def __init__(self, views: Sequence[AnyViews]) -> None:
        self.views = views

    def __getitem__(self, spec: BatchSpec) -> _Loaded:
        started_s = time.perf_counter()
        try:
            inputs = self._inputs(spec)
        except KdclError as error:
            return error
        return spec, inputs, time.perf_counter() - started_s

    def _inputs(self, spec: BatchSpec) -> Inputs:
        views, mix = self.views[spec.views], spec.mix
        ids_N = spec.ids_B if mix is None else mix.needed(spec.ids_B)
        if isinstance(views, SampleViews):
            return views.batch(spec.epoch, ids_N)
        images_NCHW = normalise(views.batch(spec.epoch, ids_N), views.like.mean, views.like.std)
        return images_NCHW if mix is None else mix.images(ids_N, images_NCHW)


class _ScheduleSampler:
    """The schedule as a sampler."""

    def __init__(self, schedule: Iterable[BatchSpec]) -> None:
        self.schedule = schedule

    def __iter__(self) -> Iterator[BatchSpec]:
        return iter(self.schedule)


def _batch(dataset: Dataset, spec: BatchSpec, inputs: Inputs, load_s: float) -> Batch:
    labels_N, mix = np.asarray(dataset.labels, np.int64), spec.mix
    labels_B = loss_labels = torch.from_numpy(labels_N[spec.ids_B])
    if mix is not None:
        partners_B = torch.from_numpy(labels_N[mix.partners])
        loss_labels = mix.labels(labels_B, partners_B, len(dataset.classes))
    return Batch(torch.from_numpy(spec.ids_B), labels_B, inputs, loss_labels, load_s)


def normalise(images_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images with zero mean and unit deviation, float32; uint8 pixels range over 0..255, others over 0..1."""
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
    """An empty float32 tensor; in a loader's worker in shared memory, so that sending it takes no copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.float32)
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.float32).set_(storage).view(shape)
