"""The average of a student's weights: timm's numbers, and what keeps and what moves it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cohorts import MakeRecipe, assert_same
from torch import Tensor, nn

from kdcl_dist.config.student import Ema
from kdcl_dist.student.dry_run import try_step
from kdcl_dist.student.ema import AveragedWeights, decay_at
from kdcl_dist.student.student import Student

KEPT, LOST = torch.zeros(()), torch.ones(())


def network() -> nn.Module:
    """Parameters, running statistics, and a counter that is no floating number."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))


def move(model: nn.Module, seed: int) -> None:
    """Weights of another step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    model.train()(torch.randn(5, 8, generator=generator))


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.97, 0.9999])
def test_it_has_timms_numbers(decay: float, warmup: bool) -> None:
    timm = pytest.importorskip("timm.utils")
    model = network()
    theirs = timm.ModelEmaV3(model, decay=decay, use_warmup=warmup)
    own = AveragedWeights(Ema(decay=decay, warmup=warmup), model)
    for step in range(1, 40):
        assert decay_at(own.ema, step) == theirs.get_decay(step)
        move(model, step)
        own.update(model, KEPT)
        theirs.update(model, step)
        assert_same(own.tensors, theirs.module.state_dict())


def test_a_skipped_step_leaves_the_average() -> None:
    model = network()
    average = AveragedWeights(Ema(decay=0.5), model)
    move(model, 0)
    average.update(model, KEPT)
    before = copy.deepcopy(average.tensors)
    kept = {name: value for name, value in before.items() if value.is_floating_point()}
    move(model, 1)
    average.update(model, LOST)
    assert_same({name: average.tensors[name] for name in kept}, kept)


def test_half_precision_is_averaged_in_single() -> None:
    model = network().bfloat16()
    average = AveragedWeights(Ema(decay=0.9999, warmup=False), model)
    average.update(model, KEPT)
    with torch.no_grad():
        model[0].bias.fill_(1.0)
        average.tensors["0.bias"].fill_(2.0)
    average.update(model, KEPT)  # in bfloat16 this step would be lost
    assert average.tensors["0.bias"].dtype == torch.float32
    assert torch.allclose(average.tensors["0.bias"], torch.tensor(1.9999))


def test_the_network_has_the_average_in_the_block_only() -> None:
    model = network()
    average = AveragedWeights(Ema(decay=0.5), model)
    for step in range(3):
        move(model, step)
        average.update(model, KEPT)
    own = copy.deepcopy(model.state_dict())

    def fail() -> None:
        with average.applied(model):
            assert_same(dict(model.state_dict()), average.tensors)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert_same(dict(model.state_dict()), own)


# -- of a student --------------------------------------------------------------------------------


def student_of(make_recipe: MakeRecipe, *overrides: str, device: str = "cpu") -> Student:
    recipe = make_recipe("students.a.ema={decay: 0.5}", *overrides)
    return Student(recipe, 0, classes=4, channels=1, device=torch.device(device))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6) % 4


def take(student: Student, step: int, factor: float = 1.0) -> Tensor:
    images, labels = batch(step)
    loss = student.loss(student.forward(images, step), labels, None).total
    return student.learn(loss * factor, 0.05)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_follows_the_steps_that_the_optimiser_takes(precision: str, make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, f"students.a.precision={precision}")
    assert student.average is not None
    take(student, 0)
    take(student, 1)
    parameters = {name for name, _ in student.model.named_parameters()}
    before = {name: student.average.tensors[name].clone() for name in parameters}
    assert not all(torch.equal(before[name], student.model.state_dict()[name]) for name in parameters)
    take(student, 2, torch.nan)
    assert_same({name: student.average.tensors[name] for name in parameters}, before)
    take(student, 3)
    assert not any(torch.equal(student.average.tensors[name], before[name]) for name in parameters)


@pytest.mark.parametrize("warmup", ["true", "false"])
def test_the_first_step_that_is_not_skipped_sets_it(warmup: str, make_recipe: MakeRecipe) -> None:
    """Also where it comes after a checkpoint. With a loss scale, a GPU skips some of a run's first steps."""
    student = student_of(make_recipe, f"students.a.ema={{decay: 0.9999, warmup: {warmup}}}")
    take(student, 0, torch.nan)
    take(student, 1, torch.nan)
    state = copy.deepcopy(student.state_dict())
    assert not state["ema"]["begun"]
    student.load_state_dict(state)
    take(student, 2)
    assert student.average is not None
    own = student.model.state_dict()
    assert_same(student.average.tensors, {name: own[name] for name in student.average.tensors})
    take(student, 3)
    parameters = dict(student.model.named_parameters())
    assert not any(torch.equal(student.average.tensors[name], each) for name, each in parameters.items())


def test_a_state_of_an_older_version_loads(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe)
    take(student, 0)
    state = copy.deepcopy(student.state_dict())
    del state["ema"]["begun"]
    student.load_state_dict(state)
    assert student.average is not None
    assert student.average.begun == 1


def test_a_state_that_is_loaded_goes_on_alike(make_recipe: MakeRecipe) -> None:
    whole, halves = student_of(make_recipe), student_of(make_recipe)
    for step in range(4):
        take(whole, step)
    for step in range(2):
        take(halves, step)
    state = copy.deepcopy(halves.state_dict())
    halves = student_of(make_recipe)
    halves.load_state_dict(state)
    for step in range(2, 4):
        take(halves, step)
    left, right = whole.state_dict()["ema"], halves.state_dict()["ema"]
    assert left["updates"] == right["updates"] == 4
    assert_same(left["model"], right["model"])
    plain = student_of(make_recipe)
    plain.model.load_state_dict(left["model"])
    images, _ = batch(9)
    assert torch.equal(plain.predict(images), whole.predict(images, averaged=True))
    assert not torch.equal(whole.predict(images), whole.predict(images, averaged=True))


def test_a_rehearsal_leaves_it_as_it_was(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe)
    average: Any = student.average
    before = copy.deepcopy(average.tensors)
    try_step(student, *batch(0))
    assert student.average is average
    assert average.updates == 0
    assert_same(average.tensors, before)


def test_no_host_waits_for_a_gpu(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, device="meta")
    take(student, 0)
    assert student.average is not None
    assert student.average.updates == 1
