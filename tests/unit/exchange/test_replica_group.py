"""The replicas of one student: their shares of a batch, and their group over real gloo as threads."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import MakeRecipe
from equality import PAIR, single
from nets import Alternating
from torch import nn

from kdcl_dist.config.rounds import Kind, Round, share_of
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.diagnostics import Conflict, conflict
from kdcl_dist.distillation.losses import kdcl_loss
from kdcl_dist.exchange.replicas import Replicas, broke_off, have_own_gpus, summing_gradients
from kdcl_dist.membership.endpoint import Endpoint
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


def waits(endpoint: Endpoint, ready: Connection) -> None:
    """The other replica of a student: it waits for a gradient that never comes."""
    store = scoped(connect_store(endpoint, 60), "test")
    link = Replicas(store, 1, 2, host="127.0.0.1", device=torch.device("cpu"), limit_s=600)
    ready.send("waits")
    with pytest.raises(RuntimeError) as raised:
        link.average([torch.ones(3)])
    ready.send(broke_off(raised.value))


def test_a_replica_that_waits_for_one_that_has_closed_its_link_fails_at_once() -> None:
    """The wrapped network of the one that has closed holds the group still."""
    store, endpoint = host_store("127.0.0.1")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=waits, args=(endpoint, theirs))
    process.start()
    try:
        device = torch.device("cpu")
        link = Replicas(scoped(store, "test"), 0, 2, host="127.0.0.1", device=device, limit_s=600)
        group = link.group
        assert ours.poll(60)
        assert ours.recv() == "waits"
        link.close()
        assert ours.poll(60)
        assert ours.recv() is True
        assert group is not None
    finally:
        process.kill()
        process.join()


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
        link.share(list(layer.buffers()))
        return layer.running_mean

    assert all(torch.equal(found, torch.zeros(2)) for found in together(work))


@pytest.mark.parametrize("rows_of_second", [slice(0, 2), slice(2, 4)])
def test_a_parameter_that_a_replica_does_not_use_has_the_gradient_of_the_whole_batch(
    rows_of_second: slice,
) -> None:
    """None if no replica uses it, as without replicas; else the mean, in which a missing one is zero."""
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, 0, -1, -1] = signs * images[:, 0, -1, -1].abs()
    shares = [images[:2], images[rows_of_second]]
    torch.manual_seed(0)
    whole = Alternating(4)
    torch.stack([whole(share).square().mean() for share in shares]).mean().backward()

    def work(link: Replicas, rank: int) -> list[Any]:
        model = Alternating(4)
        model.load_state_dict(whole.state_dict())
        wrapped = link.wrap(model, all_used=False)
        for _ in range(2):  # the search is made anew each time
            model.zero_grad(set_to_none=True)
            wrapped(shares[rank]).square().mean().backward()
        return [each.grad for each in model.parameters()]

    for gradients in together(work, count=2):
        for found, expected in zip(gradients, whole.parameters(), strict=True):
            assert (found is None) == (expected.grad is None)
            assert found is None or torch.allclose(found, expected.grad)
    unused = [path for path, each in whole.named_parameters() if each.grad is None]
    assert ("layers.0.weight" in unused) == (rows_of_second == slice(0, 2))
    assert "old.weight" in unused


def test_summed_gradients_are_averaged_once_also_those_of_the_first_pass_only() -> None:
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, 0, -1, -1] = torch.tensor([1.0, 2.0, -1.0, -2.0])  # each pass uses a layer of its own
    torch.manual_seed(0)
    whole = Alternating(4)
    torch.stack([whole(image[None]).square().mean() for image in images]).sum().div(2).backward()

    def work(link: Replicas, rank: int) -> list[Any]:
        model = Alternating(4)
        model.load_state_dict(whole.state_dict())
        wrapped = link.wrap(model, all_used=False)
        with summing_gradients(wrapped):
            first = wrapped(images[rank][None])
        first.square().mean().backward()
        summed = [None if each.grad is None else each.grad.clone() for each in model.parameters()]
        wrapped(images[2 + rank][None]).square().mean().backward()
        return [summed, [each.grad for each in model.parameters()]]

    (alone, found), (other, same) = together(work, count=2)
    assert any(a is not None and not torch.equal(a, b) for a, b in zip(alone, other, strict=True))
    for gradient, again, expected in zip(found, same, whole.parameters(), strict=True):
        assert (gradient is None) == (expected.grad is None)
        assert gradient is None or (
            torch.equal(gradient, again) and torch.allclose(gradient, expected.grad, atol=1e-6)
        )


def test_the_analysis_averages_gradients_that_a_replica_does_not_have() -> None:
    shares = [torch.ones(2, 1, 8, 8), -torch.ones(2, 1, 8, 8)]
    labels, target = torch.tensor([0, 1]), torch.randn(2, 4).log_softmax(1)

    def work(link: Replicas, rank: int) -> Conflict:
        torch.manual_seed(3)
        model = Alternating(4)
        losses = kdcl_loss(model(shares[rank]), labels, target, 2.0, 1.0, None)
        return conflict(losses, 1.0, model, average=link.average)

    first, second = together(work, count=2)
    assert first == second
    assert -1 <= first.cosine <= 1
    assert first.ratio > 0


def test_a_replica_alone_says_nothing_of_searches_in_vain() -> None:
    code = (
        "import os, torch\n"
        "from kdcl_dist.exchange.replicas import Replicas\n"
        "link = Replicas.alone(torch.device('cpu'))\n"
        "network = link.wrap(torch.nn.Linear(2, 2), all_used=False)\n"
        "network(torch.ones(1, 2)).sum().backward()\n"
        "os.write(2, b'seen')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == "seen"
