"""SwitOKD against loops in pure Python. Shapes: P peers, B batch, C classes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from kdcl_dist.distillation.divergences import balanced
from kdcl_dist.distillation.methods import METHODS, Context
from kdcl_dist.distillation.switching import switched_loss

LABELS_B = torch.arange(8) % 4


def network(seed: int, sharpness: float, wrong: int = 0) -> Tensor:
    """Logits (B, C) of a network: how sure it is of the true class, and how many samples it gets wrong."""
    generator = torch.Generator().manual_seed(seed)
    noise_BC = 0.1 * torch.randn(8, 4, generator=generator, dtype=torch.float64)
    places_B = (LABELS_B + (torch.arange(8) < wrong)) % 4
    return noise_BC + sharpness * torch.nn.functional.one_hot(places_B, 4)


def softmax(row: list[float], temperature: float) -> list[float]:
    parts = [math.exp(value / temperature) for value in row]
    return [part / math.fsum(parts) for part in parts]


def slow_apart(z: list, other: list, temperature: float) -> float:
    total = 0.0
    for row, other_row in zip(z, other, strict=True):
        p, q = softmax(row, temperature), softmax(other_row, temperature)
        total += math.fsum(abs(a - b) for a, b in zip(p, q, strict=True))
    return total / len(z)


def slow_error(z: list, labels: list, temperature: float) -> float:
    total = 0.0
    for row, y in zip(z, labels, strict=True):
        p = softmax(row, temperature)
        total += math.fsum(abs(a - b) for a, b in zip(p, y, strict=True))
    return total / len(z)


def slow(z: Tensor, peers: list[Tensor], labels: list, temperature: float) -> float | None:
    """The loss, by the paper's rule for each peer."""
    own, kept, paused = slow_error(z.tolist(), labels, temperature), 0.0, []
    for peer in peers:
        error = slow_error(peer.tolist(), labels, temperature)
        epsilon = math.exp(-own / (own + error))
        expert = own < error and slow_apart(z.tolist(), peer.tolist(), temperature) > error - epsilon * own
        if own < error:
            paused.append(expert)
        if not expert:
            for row, other in zip(z.tolist(), peer.tolist(), strict=True):
                q, p = softmax(row, temperature), softmax(other, temperature)
                kept += math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    if paused and all(paused):
        return None
    return temperature**2 * kept / len(peers) / len(labels)


#: The weak network is sure of wrong classes, where the strong one has no probability left.
STRONG_BC, NEAR_BC, WEAK_BC = network(0, 4.0), network(2, 3.9), network(1, 9.0, wrong=5)
CROWD = [STRONG_BC, WEAK_BC, network(2, 5.0, wrong=1), network(3, 0.2, wrong=3), NEAR_BC]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("mixed", [False, True])
def test_equal_to_loops(temperature: float, mixed: bool) -> None:
    one_hot_BC = torch.nn.functional.one_hot(LABELS_B, 4).double()
    labels = 0.7 * one_hot_BC + 0.3 * one_hot_BC.flip(1) if mixed else LABELS_B
    rows = labels.tolist() if mixed else one_hot_BC.tolist()
    kinds = set()
    for size in (2, 3, 5):
        for i in range(size):
            peers = [other for j, other in enumerate(CROWD[:size]) if j != i]
            found = switched_loss(CROWD[i], torch.stack(peers), labels, temperature)
            expected = slow(CROWD[i], peers, rows, temperature)
            assert (found is None) == (expected is None)
            kinds.add(found is None)
            if found is not None and expected is not None:
                assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert kinds == {False, True}


def test_of_two_the_one_ahead_pauses_and_the_other_learns() -> None:
    assert switched_loss(STRONG_BC, WEAK_BC[None], LABELS_B, 1.0) is None
    assert switched_loss(WEAK_BC, STRONG_BC[None], LABELS_B, 1.0) is not None
    assert switched_loss(STRONG_BC, NEAR_BC[None], LABELS_B, 1.0) is not None, "a small gap"


def test_of_three_it_pauses_only_if_it_is_too_far_ahead_of_both() -> None:
    loss = switched_loss(STRONG_BC, torch.stack([NEAR_BC, WEAK_BC]), LABELS_B, 1.0)
    alone = switched_loss(STRONG_BC, NEAR_BC[None], LABELS_B, 1.0)
    assert loss is not None
    assert alone is not None
    assert loss.item() == pytest.approx(alone.item() / 2), "the weak one teaches nothing"
    assert switched_loss(STRONG_BC, torch.stack([WEAK_BC, WEAK_BC]), LABELS_B, 1.0) is None


def test_peers_that_do_not_learn_hold_nobody_up() -> None:
    peer_loss = METHODS["switokd"].peer_loss
    assert peer_loss is not None
    context = Context(students=("weak",), fixed=("weak",))
    assert peer_loss(STRONG_BC, WEAK_BC[None], LABELS_B, 1.0, context) is not None
    assert peer_loss(STRONG_BC, WEAK_BC[None], LABELS_B, 1.0, Context(students=("weak",))) is None


def test_equal_students_learn() -> None:
    z_BC = network(0, 3.0).requires_grad_()
    loss = switched_loss(z_BC, z_BC.detach()[None], LABELS_B, 1.0)
    assert loss is not None
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert switched_loss(1e4 * z_BC, 1e4 * z_BC.detach()[None], LABELS_B, 1.0) is not None, "errors of 0"


@pytest.mark.parametrize("own", [4, 1, 0])
def test_replicas_decide_together(own: int) -> None:
    """Each half alone would decide otherwise: in the first the student is behind. It may have few rows."""
    z_BC, peer_BC = STRONG_BC.clone(), WEAK_BC.clone()
    z_BC[:4], peer_BC[:4] = WEAK_BC[:4], STRONG_BC[:4]
    peer_BC[4:] = WEAK_BC[:4].roll(1, dims=1)
    parts = [slice(4 - own, 4), slice(4, 8)]
    replicas = [(z_BC[rows], peer_BC[rows][None], LABELS_B[rows], 1.0) for rows in parts]
    if own == 4:
        assert [switched_loss(*replica) is None for replica in replicas] == [False, True]
    together = slice(4 - own, 8)
    whole = switched_loss(z_BC[together], peer_BC[together][None], LABELS_B[together], 1.0) is None
    sent: list[list[Tensor]] = []
    for replica in replicas:
        switched_loss(*replica, average=lambda tensors: sent.append([each.clone() for each in tensors]))

    def average(tensors: list[Tensor]) -> None:
        for tensor, *all_of_them in zip(tensors, *sent, strict=True):
            tensor.copy_(torch.stack(all_of_them).mean(dim=0))

    for replica in replicas:
        loss = switched_loss(*replica, average=average)
        assert (loss is None) == whole
        assert loss is None or loss.isfinite()


def test_replicas_without_any_sample_do_not_pause() -> None:
    nothing = STRONG_BC[:0], WEAK_BC[:0][None], LABELS_B[:0], 1.0
    loss = switched_loss(*nothing, average=lambda tensors: None)
    assert loss is not None
    assert loss.item() == 0


def test_the_loss_of_the_recipe_takes_the_place_of_kl() -> None:
    z_BC, peers_PBC = WEAK_BC, torch.stack([STRONG_BC, NEAR_BC])
    divergence = partial(balanced, larger=2.0, smaller=1.0)
    found = switched_loss(z_BC, peers_PBC, LABELS_B, 2.0, divergence=divergence)
    log_q_BC, log_p_PBC = (z_BC / 2).log_softmax(1), (peers_PBC / 2).log_softmax(2)
    expected = sum(4 * divergence(log_q_BC, log_p_BC, LABELS_B, 2.0) / 16 for log_p_BC in log_p_PBC)
    assert found is not None
    assert found.item() == pytest.approx(float(expected), rel=1e-5)


def test_the_gradient_is_that_of_the_peers_that_teach() -> None:
    z_BC = STRONG_BC.clone().requires_grad_()
    loss = switched_loss(z_BC, torch.stack([NEAR_BC, WEAK_BC]), LABELS_B, 1.0)
    assert loss is not None
    loss.backward()
    expected_BC = (z_BC.detach().softmax(1) - NEAR_BC.softmax(1)) / 8 / 2
    assert z_BC.grad is not None
    torch.testing.assert_close(z_BC.grad, expected_BC, atol=1e-6, rtol=1e-4)
