"""The replicas of one student: their shares of a batch, and their group over real gloo as threads."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import MakeRecipe
from equality import PAIR, single
from torch import nn

from kdcl_dist.config.rounds import Kind, Round, share_of
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.exchange.replicas import Replicas, have_own_gpus
from kdcl_dist.membership.store import Store
from kdcl_dist.membership.tcp_store import connect_store, host_store, scoped
from kdcl_dist.utils.network import interface_of


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
def test_shares_are_even_and_whole(rows: int, replicas: int) -> None:
    shares = [share_of(rows, replica, replicas) for replica in range(replicas)]
    assert sum(shares) == rows
    assert shares == [len(part) for part in np.array_split(np.arange(rows), replicas)]


def test_every_sample_once(make_recipe: MakeRecipe) -> None:
    training_data = TrainingData.open(make_recipe(PAIR))
    test_turns = Round(Kind.EVALUATE, training_data.recipe.epochs - 1, training_data.schedule.steps_per_epoch)
    parts = [list(training_data.batches(0, test_turns, replica)) for replica in range(2)]
    whole = [batch.ids for batch in training_data.test_batches()]
    assert [torch.cat([a.ids, b.ids]).tolist() for a, b in zip(*parts, strict=True)] == [
        i.tolist() for i in whole
    ]
    steps = zip(training_data.training_batches(0, 0, 0), training_data.training_batches(0, 0, 1), strict=True)
    for (left, right), ids in zip(steps, steps_of(training_data), strict=True):
        assert len(left.ids) == len(right.ids) == 8
        assert sorted(torch.cat([left.ids, right.ids]).tolist()) == sorted(ids)


def steps_of(training_data: TrainingData) -> list[list[int]]:
    alone = TrainingData(single(training_data.recipe), training_data.train, training_data.test)
    return [batch.ids.tolist() for batch in alone.training_batches(0, 0)]


def together(work: Callable[[Replicas, int], Any], count: int = 3) -> list[Any]:
    """Run `work` as each replica of one student over a real group."""

    def join(store: Store, rank: int) -> Any:
        link = Replicas(store, rank, count, host="127.0.0.1", device=torch.device("cpu"), limit_s=30)
        try:
            return work(link, rank)
        finally:
            link.close()

    return at_once(join, count)


def at_once(work: Callable[[Store, int], Any], count: int = 3) -> list[Any]:
    """Run `work` as each replica of one student with a real store."""
    server, endpoint = host_store("127.0.0.1")
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        results[rank] = work(scoped(server if rank == 0 else connect_store(endpoint, 10), "test"), rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), results
    return results


@pytest.mark.parametrize("shape", [(12, 4), (12, 4, 3, 3)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_batch_norm_equals_that_of_the_whole_batch(
    shape: Sequence[int], momentum: float
) -> None:
    shares = [2, 4, 6]  # rows of each replica; those of detectors differ by their images' sizes
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    whole = kind(4, momentum=momentum).double()
    nn.init.normal_(whole.weight)
    x, up = torch.randn(*shape).double().requires_grad_(), torch.randn(*shape).double()
    out = whole(x)
    (out * up).sum().backward()
    initial = {key: value.clone() for key, value in kind(4).double().state_dict().items()}
    initial["weight"] = whole.weight.detach().clone()

    def work(link: Replicas, rank: int) -> tuple[torch.Tensor, ...]:
        layer = kind(4, momentum=momentum).double()
        layer.load_state_dict(initial)
        link.synchronise_batchnorm(layer)
        own = x.detach().split(shares)[rank].requires_grad_()
        result = layer(own)
        (result * up.split(shares)[rank]).sum().backward()
        grads = [layer.weight.grad.clone(), layer.bias.grad.clone()]
        return result.detach(), own.grad, *grads, *layer.state_dict().values()

    found = together(work)
    assert torch.allclose(torch.cat([part[0] for part in found]), out)
    assert torch.allclose(torch.cat([part[1] for part in found]), x.grad)
    assert torch.allclose(sum(part[2] for part in found), whole.weight.grad)
    assert torch.allclose(sum(part[3] for part in found), whole.bias.grad)
    for part in found:
        for value, expected in zip(part[4:], whole.state_dict().values(), strict=True):
            assert torch.allclose(value.double(), expected.double())


def test_a_closed_group_is_held_by_no_layer() -> None:
    """Peers that wait in a collective fail at once only if no reference to the group is left."""
    layers = []

    def work(link: Replicas, rank: int) -> tuple[torch.Tensor, ...]:
        layers.append(layer := nn.BatchNorm1d(4))
        link.synchronise_batchnorm(layer)
        layer(torch.randn(3, 4))
        group = weakref.ref(link.group)
        link.close()
        return (torch.tensor(group() is None),)

    assert all(bool(found) for (found,) in together(work))
    assert len(layers) == 3


@pytest.mark.parametrize(
    ("gpus", "own"), [(["u", "v", "w"], True), (["u", "v", "u"], False), (["u", "u", "u"], False)]
)
def test_all_replicas_know_whether_two_share_a_gpu(gpus: list[str], own: bool) -> None:
    assert at_once(lambda store, rank: have_own_gpus(store, rank, 3, gpus[rank])) == [own] * 3


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
    assert interface_of("::1") is None


def test_buffers_become_those_of_the_first() -> None:
    def work(link: Replicas, rank: int) -> torch.Tensor:
        layer = nn.BatchNorm1d(2)
        layer.running_mean.fill_(rank)
        link.share_buffers(layer)
        return layer.running_mean

    assert all(torch.equal(found, torch.zeros(2)) for found in together(work))
