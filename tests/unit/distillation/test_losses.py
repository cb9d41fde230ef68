"""The losses against scalar loops in pure Python. Shapes: B batch, C classes, P peers."""

import math

import pytest
import torch

from kdcl_dist.distillation.losses import distillation_loss, dml_loss, kdcl_loss, task_loss


def log_softmax(row, temperature=1.0):
    scaled = [value / temperature for value in row]
    top = max(scaled)
    total = top + math.log(math.fsum(math.exp(value - top) for value in scaled))
    return [value - total for value in scaled]


def slow_task(logits, labels):
    return math.fsum(-log_softmax(row)[y] for row, y in zip(logits, labels, strict=True)) / len(labels)


def slow_distillation(logits, log_targets, temperature):
    terms = []
    for row, log_p in zip(logits, log_targets, strict=True):
        log_q = log_softmax(row, temperature)
        terms += [math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)]
    return temperature**2 * math.fsum(terms) / len(logits)


def draw(seed, batch, classes, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits_BC = scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    other_BC = scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return logits_BC, torch.randint(classes, (batch,), generator=generator), other_BC


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_scalar_loops(seed):
    temperature, weight = (0.5, 1.0, 2.0, 4.0)[seed % 4], 0.3 * seed
    logits_BC, labels_B, other_BC = draw(seed, 1 + seed % 5, 2 + 3 * seed)
    log_target_BC = (other_BC / temperature).log_softmax(dim=1)
    losses = kdcl_loss(logits_BC, labels_B, log_target_BC, temperature, weight)
    task = slow_task(logits_BC.tolist(), labels_B.tolist())
    distillation = slow_distillation(logits_BC.tolist(), log_target_BC.tolist(), temperature)
    assert losses.task.item() == pytest.approx(task, rel=1e-12)
    assert losses.distillation.item() == pytest.approx(distillation, rel=1e-10)
    # Cross-entropy keeps weight 1 whatever lambda is.
    assert losses.total.item() == pytest.approx(task + weight * distillation, rel=1e-10)


@pytest.mark.parametrize("peers", [0, 1, 2, 5])
def test_dml_is_the_mean_over_peers(peers):
    logits_BC, labels_B, _ = draw(peers, 6, 9)
    log_p_PBC = torch.empty(peers, 6, 9, dtype=torch.float64)
    for peer in range(peers):
        log_p_PBC[peer] = draw(100 + peer, 6, 9)[0].log_softmax(dim=1)
    losses = dml_loss(logits_BC, labels_B, log_p_PBC, 0.7)
    divergences = [slow_distillation(logits_BC.tolist(), log_p_BC.tolist(), 1.0) for log_p_BC in log_p_PBC]
    expected = math.fsum(divergences) / peers if peers else 0.0
    assert losses.distillation.item() == pytest.approx(expected, rel=1e-10)
    assert losses.total.item() == pytest.approx(losses.task.item() + 0.7 * expected, rel=1e-10)


def test_kl_is_summed_over_classes():
    # Averaged over classes (the default of F.kl_div) it would be C times smaller.
    log_target_BC = torch.tensor([[0.7, 0.1, 0.1, 0.1]], dtype=torch.float64).log()
    uniform_BC = torch.zeros(1, 4, dtype=torch.float64)
    expected = 0.7 * math.log(0.7 * 4) + 0.3 * math.log(0.1 * 4)
    assert distillation_loss(uniform_BC, log_target_BC, 1.0).item() == pytest.approx(expected, rel=1e-12)


def test_batch_is_averaged():
    logits_BC, _, other_BC = draw(0, 4, 5)
    target_BC = other_BC.log_softmax(dim=1)
    once = distillation_loss(logits_BC, target_BC, 2.0)
    twice = distillation_loss(logits_BC.repeat(2, 1), target_BC.repeat(2, 1), 2.0)
    torch.testing.assert_close(once, twice)


def test_no_gradient_into_the_targets():
    logits_BC, labels_B, other_BC = draw(1, 4, 5)
    for loss in (
        lambda x: kdcl_loss(logits_BC.requires_grad_(), labels_B, x, 2.0, 1.0).total,
        lambda x: dml_loss(logits_BC.requires_grad_(), labels_B, x[None], 1.0).total,
    ):
        target_BC = other_BC.log_softmax(dim=1).requires_grad_()
        loss(target_BC).backward()
        assert target_BC.grad is None
        assert logits_BC.grad is not None


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_gradient_is_temperature_times_the_difference(temperature):
    # d/dz T^2 KL = T (q - p) / B.
    logits_BC, _, other_BC = draw(2, 3, 6)
    logits_BC.requires_grad_()
    log_target_BC = (other_BC / temperature).log_softmax(dim=1)
    distillation_loss(logits_BC, log_target_BC, temperature).backward()
    q_BC = (logits_BC.detach() / temperature).softmax(dim=1)
    torch.testing.assert_close(logits_BC.grad, temperature * (q_BC - log_target_BC.exp()) / 3)


def test_gradient_keeps_its_size_as_temperature_grows():
    logits_BC, _, other_BC = draw(3, 8, 10)
    sizes = []
    for temperature in (50.0, 500.0):
        leaf_BC = logits_BC.clone().requires_grad_()
        distillation_loss(leaf_BC, (other_BC / temperature).log_softmax(dim=1), temperature).backward()
        sizes.append(leaf_BC.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_gradients_by_finite_differences():
    logits_BC, labels_B, other_BC = draw(4, 3, 5)
    logits_BC.requires_grad_()
    log_p_BC = other_BC.log_softmax(dim=1)
    assert torch.autograd.gradcheck(lambda z: kdcl_loss(z, labels_B, log_p_BC, 3.0, 0.4).total, logits_BC)
    assert torch.autograd.gradcheck(lambda z: dml_loss(z, labels_B, log_p_BC[None], 0.4).total, logits_BC)


def test_zero_at_the_target_and_positive_elsewhere():
    logits_BC, _, other_BC = draw(5, 7, 9)
    own_BC = (logits_BC / 2).log_softmax(dim=1)
    assert distillation_loss(logits_BC, own_BC, 2.0).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss(other_BC, own_BC, 2.0).item() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits_BC, labels_B, other_BC = draw(6, 8, 1000)
    half_BC, log_p_BC = logits_BC.to(dtype), other_BC.log_softmax(dim=1).to(dtype)
    losses = kdcl_loss(half_BC, labels_B, log_p_BC, 2.0, 1.0)
    exact = kdcl_loss(half_BC.double(), labels_B, log_p_BC.double(), 2.0, 1.0)
    assert losses.total.dtype == torch.float32
    assert losses.total.item() == pytest.approx(exact.total.item(), rel=1e-4)
    assert dml_loss(half_BC, labels_B, log_p_BC[None], 1.0).total.dtype == torch.float32


def test_large_logits_stay_finite():
    logits_BC, labels_B, other_BC = draw(7, 8, 10, scale=1e4)
    losses = kdcl_loss(logits_BC.float(), labels_B, (other_BC / 2).log_softmax(dim=1).float(), 2.0, 1.0)
    assert all(bool(torch.isfinite(value)) for value in losses)
    assert bool(torch.isfinite(task_loss(logits_BC.half().clamp(-6e4, 6e4), labels_B)))
