"""A student that learns from some of the samples on which it answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcl_dist.config.distillation import Distillation
from kdcl_dist.config.student import Student
from kdcl_dist.distillation.methods import Context
from kdcl_dist.student.learned_rows import LearnedRows
from kdcl_dist.student.student_loss import StudentLoss

C, B = 5, 8
#: 10 of 40 training samples, with gaps.
TRAIN, OWN = np.arange(10, 90, 2), np.arange(10, 50, 4)


def loss_of(method: str) -> StudentLoss:
    spec = Student.model_validate({"name": "a", "model": "mlp", "label_smoothing": 0.1})
    loss = StudentLoss(Distillation(method=method), spec, torch.device("cpu"))
    loss.learned = LearnedRows(OWN, TRAIN)
    return loss


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", ["none", "linear", "dml"])
def test_the_gradient_is_of_the_learned_rows(method: str) -> None:
    """As that of a loss of these rows alone, times the share that makes each sample weigh the same."""
    loss = loss_of(method)
    ids_B = torch.tensor([10, 12, 14, 16, 22, 50, 52, 88])
    own_K = [0, 2, 4]
    z_BC, labels_B = drawn(B, C, seed=0).requires_grad_(), torch.arange(B) % C
    targets = {"none": None, "linear": drawn(B, C, seed=1).log_softmax(dim=1), "dml": drawn(2, B, C, seed=1)}
    target = targets[method]
    found = loss(z_BC, labels_B, target, ids_B=ids_B)
    alone = loss(z_BC[own_K], labels_B[own_K], None if target is None else target[..., own_K, :])
    for one, other in zip(found, alone, strict=True):
        assert float(one.detach()) == pytest.approx(float(other.detach()) * 3 / (B * 10 / 40))
    (gradient,) = torch.autograd.grad(found.total, z_BC)
    others = [row for row in range(B) if row not in own_K]
    assert gradient[others].abs().sum() == 0
    assert bool((gradient[own_K].abs().sum(dim=1) > 0).all())


def test_shares_of_a_batch_have_its_loss_on_average() -> None:
    """So that replicas and parts of a step give the gradient of the whole."""
    loss, ids_B = loss_of("linear"), torch.tensor([10, 12, 14, 16, 22, 50, 52, 88])
    z_BC, labels_B, target_BC = (
        drawn(B, C, seed=0),
        torch.arange(B) % C,
        drawn(B, C, seed=1).log_softmax(dim=1),
    )
    whole = loss(z_BC, labels_B, target_BC, ids_B=ids_B).total
    halves = [
        loss(z_BC[rows], labels_B[rows], target_BC[rows], ids_B=ids_B[rows]).total
        for rows in (slice(0, 4), slice(4, 8))
    ]
    assert float(sum(halves)) / 2 == pytest.approx(float(whole))


def test_without_learned_rows_nothing_is_learned() -> None:
    loss, z_BC = loss_of("linear"), drawn(B, C, seed=0).requires_grad_()
    target_BC = drawn(B, C, seed=1).log_softmax(dim=1)
    losses = loss(z_BC, torch.zeros(B).long(), target_BC, ids_B=torch.arange(70, 86, 2))
    assert [float(each.detach()) for each in losses] == [0, 0, 0]
    losses.total.backward()
    assert z_BC.grad is not None
    assert z_BC.grad.abs().sum() == 0


def test_the_targets_cover_some_rows() -> None:
    loss = loss_of("linear")
    ids_B, covered_B = torch.arange(10, 26, 2), torch.tensor([True, True] + [False] * 6)
    z_BC, target_BC = drawn(B, C, seed=0), drawn(B, C, seed=1).log_softmax(dim=1)
    found = loss(z_BC, torch.zeros(B).long(), target_BC, covered_B, ids_B=ids_B)
    first = loss(z_BC[:1], torch.zeros(1).long(), target_BC[:1])
    assert float(found.distillation) == pytest.approx(float(first.distillation) / (B * 10 / 40))


def test_a_replica_without_own_rows_takes_part_in_the_decision_to_pause() -> None:
    loss, ids_B = loss_of("switokd"), torch.arange(50, 66, 2)
    z_BC, peers_PBC, labels_B = (
        drawn(B, C, seed=0).requires_grad_(),
        drawn(1, B, C, seed=1),
        torch.arange(B) % C,
    )
    strong_BC = 4.0 * torch.nn.functional.one_hot(labels_B, C)
    peer_BC = 9.0 * torch.nn.functional.one_hot((labels_B + 1) % C, C)
    calls = []

    def average(tensors: list[torch.Tensor]) -> None:
        calls.append(len(tensors))
        figures, samples = tensors
        samples.fill_(B / 2)  # the other replica has samples, and is far ahead
        p, q = (x.float().softmax(dim=1) for x in (strong_BC, peer_BC))
        y = torch.nn.functional.one_hot(labels_B, C)
        figures.copy_(
            torch.stack([torch.stack([(x - y).abs().sum(), (x - p).abs().sum()]) for x in (p, q)]).T / 2
        )

    found = loss(z_BC, labels_B, peers_PBC, context=Context(average=average, students=("b",)), ids_B=ids_B)
    assert len(calls) == 1
    assert loss.paused
    assert float(found.total.detach()) == 0


def test_a_method_of_the_users_own_averages_nothing_that_some_replicas_lack() -> None:
    loss = loss_of("dml")
    given = []

    def own(
        z_BC: torch.Tensor, peers: object, labels: object, temperature: float, context: Context
    ) -> torch.Tensor:
        given.append(context.average)
        return z_BC.sum()

    loss.__dict__["peer_loss"] = own
    z_BC, labels_B = drawn(B, C, seed=0), torch.arange(B) % C
    loss(
        z_BC,
        labels_B,
        drawn(1, B, C, seed=1),
        context=Context(average=list.clear),
        ids_B=torch.tensor([10] * B),
    )
    assert given == [None]
