"""Replicas: several workers that are one student. Each takes a share of the step; all learn from the whole.

torch's DistributedDataParallel averages gradients over a process group of the student: NCCL where each
replica has its own GPU, else gloo; NCCL refuses two ranks on one GPU. So parameters stay equal. Buffers,
such as the running statistics of batch norm, become those of the first replica whenever the student is
tested or saved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdcl_dist.exchange import sync_batchnorm
from kdcl_dist.exchange.gloo import find_links, form_gloo
from kdcl_dist.membership.store import Store
from kdcl_dist.membership.tcp_store import RunStore, c10d
from kdcl_dist.utils.listeners import end_links
from kdcl_dist.utils.network import interface_of

__all__ = ["Replicas", "broke_off", "have_own_gpus", "summing_gradients"]


class Replicas:
    """One replica's link to the others of its student.

    Args:
        store: the student's own part of the run's store, through which the replicas connect.
        replica: index of this one among `count`.
        host: address of this process.
        device: of the network.
        limit_s: seconds after which a replica that does not answer counts as lost.

    Attributes:
        count, replica, device: as given.
    """

    def __init__(
        self, store: RunStore, replica: int, count: int, *, host: str, device: torch.device, limit_s: float
    ) -> None:
        self._store = store  # torch may use it for as long as the group lives
        self.group: Any | None = _form(store, replica, count, host, device, timedelta(seconds=limit_s))
        self._links = find_links(store, replica, count) if count > 1 else set()
        self.count, self.replica, self.device = count, replica, device

    @classmethod
    def alone(cls, device: torch.device) -> Replicas:
        """The link of a replica without others, with which a step can be rehearsed.

        torch says once a process that a search for unused parameters found none; it says so here, unseen.
        """
        replicas = cls(c10d.HashStore(), 0, 1, host="127.0.0.1", device=device, limit_s=60)
        with _no_stderr():
            replicas.wrap(nn.Linear(1, 1).to(device), all_used=False)(torch.zeros(1, 1, device=device))
        return replicas

    def wrap(self, model: nn.Module, *, all_used: bool = True) -> nn.Module:
        """The network with averaged gradients; its parameters and the names of its state stay the same.

        Args:
            model: the network.
            all_used: whether every pass uses every parameter. If not, each pass is searched for those that it
                does not use: their gradient counts as zero, and is None if no replica uses them.
        """
        return DistributedDataParallel(
            model,
            process_group=self.group,
            forward_sync_buffers=False,
            find_unused_parameters=not all_used,
        )

    def synchronise_batchnorm(self, model: nn.Module) -> None:
        """Let every batch norm of the network take its statistics over all replicas.

        The network keeps its layers, and so the names and values of its state.
        """
        sync_batchnorm.synchronise_batchnorm(model, lambda: self.group)

    def share(self, tensors: list[torch.Tensor]) -> None:
        """Give every replica the values that the first has in these tensors, such as buffers."""
        for tensor in tensors:
            dist.broadcast(tensor, group_src=0, group=self.group)

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replace tensors by their mean over the replicas."""
        for tensor in tensors:
            dist.all_reduce(tensor, group=self.group)
            tensor.div_(self.count)

    def gathered(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all replicas, by index; each gives one of the same size, on its device."""
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(found, tensor, group=self.group)
        return found

    def close(self) -> None:
        """Release the group, and end its connections: a replica that waits for this one fails at once.

        The wrapped network holds the group until the next generation builds another. Between GPUs it has
        no connections of gloo; there NCCL's own limit ends the wait.
        """
        end_links(self._links)
        self._links, self.group = set(), None


def summing_gradients(wrapped: nn.Module) -> AbstractContextManager[None]:
    """Forward passes in the block do not average their gradients; the next pass outside averages the sum.

    Args:
        wrapped: a network of `Replicas.wrap`.
    """
    assert isinstance(wrapped, DistributedDataParallel)
    return wrapped.no_sync()


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what this process writes to stderr, also from C++."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def broke_off(error: BaseException) -> bool:
    """Whether an error is of a connection between replicas, not of the network."""
    text = str(error).lower()
    kinds = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
    return isinstance(error, kinds) or "gloo" in text or "connection closed by peer" in text


def _form(
    store: RunStore, replica: int, count: int, host: str, device: torch.device, limit: timedelta
) -> Any:
    """A process group on the run's own store, never torch's global default.

    torch has no public way to make one: its public functions need the global default group.
    """
    kinds = dist.ProcessGroup.BackendType
    if (
        device.type == "cuda"
        and count > 1
        and dist.is_nccl_available()
        and have_own_gpus(store, replica, count, str(torch.cuda.get_device_properties(device).uuid))
    ):
        if (name := interface_of(host)) is not None:
            # Without "=", NCCL also takes interfaces whose names only begin like this one.
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = limit
        backend, kind = c10d.ProcessGroupNCCL(store, replica, count, options), kinds.NCCL
    else:
        backend, kind = form_gloo(store, replica, count, host=host, limit=limit), kinds.GLOO
    group = c10d.ProcessGroup(store, replica, count)
    group._set_default_backend(kind)
    group._register_backend(device, kind, backend)
    return group


def have_own_gpus(store: Store, replica: int, count: int, gpu: str) -> bool:
    """Whether each replica of a student has a GPU to itself; each waits for the answers of all.

    Args:
        store: the student's own part of the run's store.
        replica: index of this one among `count`.
        gpu: identifies the GPU of this replica among those of all hosts.
    """
    store.set(f"gpu/{replica}", gpu)
    return len({store.get(f"gpu/{other}") for other in range(count)}) == count
