"""Learning rates against the definitions, written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kdcl_dist.config.optim import Constant, Cosine, MultiStep
from kdcl_dist.student.learning_rate import learning_rate


def rates(
    schedule: Constant | MultiStep | Cosine, epochs: int, per_epoch: int, lr: float = 0.8
) -> list[float]:
    return [
        learning_rate(schedule, lr, step=step, steps_per_epoch=per_epoch, epochs=epochs)
        for step in range(epochs * per_epoch)
    ]


def test_multistep_equals_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.8)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.1)
    expected = []
    for _ in range(7):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        scheduler.step()
    assert rates(MultiStep(milestones=[2, 5]), 7, 3) == pytest.approx(expected)


def test_warm_up_rises_by_step_and_then_the_schedule_counts_from_the_start() -> None:
    found = rates(MultiStep(milestones=[3], warmup_epochs=2, warmup_lr=0.1), 4, 5)
    assert found[:10] == pytest.approx([0.1 + 0.7 * step / 10 for step in range(10)])
    assert found[10:] == pytest.approx([0.8] * 5 + [0.08] * 5)


def test_cosine_goes_from_the_base_to_zero() -> None:
    found = rates(Cosine(warmup_epochs=1), 5, 4)
    assert found[:4] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    expected = [0.8 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)]
    assert found[4:] == pytest.approx(expected)


def test_constant() -> None:
    assert set(rates(Constant(), 3, 2)) == {0.8}
