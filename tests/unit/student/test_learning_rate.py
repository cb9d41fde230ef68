"""Learning rates against the definitions, written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdcl_dist.config.schedules import Constant, Cosine, MultiStep, OneCycle, OwnSchedule, Poly, Schedule
from kdcl_dist.errors import ModelError
from kdcl_dist.student.learning_rate import learning_rate


def rates(schedule: Schedule, epochs: int, per_epoch: int, lr: float = 0.8) -> list[float]:
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


def torch_rates(make: Callable[[torch.optim.Optimizer], Any], steps: int, lr: float = 0.8) -> list[float]:
    """The rates of one of torch's schedulers, stepped once a step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_ends_above_zero_like_torch() -> None:
    expected = torch_rates(lambda each: torch.optim.lr_scheduler.CosineAnnealingLR(each, 12, 0.05), 12)
    assert rates(Cosine(min_lr=0.05), 3, 4) == pytest.approx(expected)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_poly_equals_torch(power: float) -> None:
    expected = torch_rates(lambda each: torch.optim.lr_scheduler.PolynomialLR(each, 12, power), 12)
    assert rates(Poly(power=power), 3, 4) == pytest.approx(expected)


def test_poly_ends_at_min_lr() -> None:
    assert rates(Poly(min_lr=0.2, warmup_epochs=1), 4, 3)[3:] == pytest.approx(
        [0.2 + 0.6 * (1 - step / 9) for step in range(9)]
    )


@pytest.mark.parametrize("rise", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("epochs", [3, 7])
def test_one_cycle_equals_torch(rise: float, epochs: int) -> None:
    steps = 10 * epochs

    def make(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.OneCycleLR:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.8, total_steps=steps, pct_start=rise, div_factor=25, cycle_momentum=False
        )

    # One step more than torch's total would raise.
    expected = torch_rates(make, steps - 1)
    assert rates(OneCycle(rise=rise), epochs, 10)[:-1] == pytest.approx(expected)
    assert rates(OneCycle(rise=rise, final_factor=0.0), epochs, 10)[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("steps", range(1, 8))
def test_one_cycle_of_few_steps_is_sound(steps: int) -> None:
    found = rates(OneCycle(), 1, steps)
    assert all(0 < rate <= 0.8 for rate in found), found


@pytest.mark.parametrize(("rise", "epochs"), [(0.1, 1), (0.05, 2), (0.01, 10)])
def test_one_cycle_whose_peak_is_its_first_step(rise: float, epochs: int) -> None:
    found = rates(OneCycle(rise=rise), epochs, 10)
    assert found[0] == 0.8
    assert found == sorted(found, reverse=True)


def test_an_own_schedule_has_its_arguments() -> None:
    schedule = OwnSchedule.model_validate({"name": "nets:halving", "every": 2})
    assert rates(schedule, 2, 3) == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"name": "nets:negative"}, ["nets:negative", "returns -1.0 at step 0"]),
        ({"name": "nets:halving"}, ["nets:halving", "fails at step 0", "every"]),
        ({"name": "nets:absent"}, ["nets:absent", "no attribute"]),
        ({"name": "no_such_module:x"}, ["no_such_module"]),
    ],
)
def test_mistakes_of_an_own_schedule(schedule: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        rates(OwnSchedule.model_validate(schedule), 1, 1)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
