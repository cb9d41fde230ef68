"""The optimisers of a recipe against torch's and timm's own, given the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cohorts import MakeRecipe
from pydantic import PositiveFloat, TypeAdapter
from torch import nn

from kdcl_dist.config.optim import SGD, Optimizer
from kdcl_dist.errors import ModelError, RecipeError
from kdcl_dist.student.optimizer import build_optimizer, load_optimizer
from kdcl_dist.student.student import Student


def spec_of(fields: dict[str, Any]) -> Optimizer:
    return TypeAdapter(Optimizer).validate_python(fields)


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def push(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def timm_optimizer(name: str) -> Any:
    return getattr(pytest.importorskip("timm.optim"), name)


CASES = {
    "rmsprop": (
        {"name": "rmsprop", "lr": 0.02, "alpha": 0.9, "momentum": 0.3, "weight_decay": 0.1},
        lambda p: torch.optim.RMSprop(p, 0.02, alpha=0.9, momentum=0.3, weight_decay=0.1),
    ),
    "nadamw": (
        {"name": "nadamw", "lr": 0.02, "beta1": 0.8, "weight_decay": 0.1},
        lambda p: torch.optim.NAdam(
            p, 0.02, betas=(0.8, 0.999), weight_decay=0.1, decoupled_weight_decay=True
        ),
    ),
    "lamb": (
        {"name": "lamb", "lr": 0.02, "beta2": 0.99, "weight_decay": 0.1},
        lambda p: timm_optimizer("Lamb")(p, 0.02, betas=(0.9, 0.99), weight_decay=0.1),
    ),
    "lion": (
        {"name": "lion", "lr": 0.002, "weight_decay": 0.1},
        lambda p: timm_optimizer("Lion")(p, 0.002, weight_decay=0.1),
    ),
    "adagrad": (
        {"name": "torch.optim:Adagrad", "lr": 0.02, "lr_decay": 0.1},
        lambda p: torch.optim.Adagrad(p, 0.02, lr_decay=0.1),
    ),
}


def test_a_class_with_other_defaults_is_the_same_optimizer() -> None:
    """Such as that of examples/detection."""

    class Other(SGD):
        lr: PositiveFloat = 0.04

    optimizer = build_optimizer(Other(), small())
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.defaults["lr"] == 0.04


@pytest.mark.parametrize("case", CASES)
def test_equals_the_class_itself(case: str) -> None:
    fields, make = CASES[case]
    ours, theirs = small(), small()
    optimizer, expected = build_optimizer(spec_of(fields), ours), make(theirs.parameters())
    for number in range(4):
        push(ours, optimizer, number)
        push(theirs, expected, number)
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("case", CASES)
def test_a_state_goes_on(case: str) -> None:
    fields, _ = CASES[case]
    straight, broken = small(), small()
    optimizer, first = (build_optimizer(spec_of(fields), each) for each in (straight, broken))
    for number in range(2):
        push(straight, optimizer, number)
        push(broken, first, number)
    second = build_optimizer(spec_of(fields), broken)
    load_optimizer(second, first.state_dict())
    for number in range(2, 4):
        push(straight, optimizer, number)
        push(broken, second, number)
    for left, right in zip(straight.parameters(), broken.parameters(), strict=True):
        assert torch.equal(left, right)


def test_norms_and_biases_keep_their_length_without_decay() -> None:
    model = small()
    spec = spec_of({"name": "adamw", "lr": 0.1, "weight_decay": 0.5, "decay_norm_and_bias": False})
    before = [each.detach().clone() for each in model.parameters()]
    optimizer = build_optimizer(spec, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.allclose(new, old * (0.95 if new.ndim > 1 else 1.0))


def scales(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Of each parameter, the factor of its learning rate and its weight decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "convnext_atto"])
def test_layers_learn_as_those_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name)
    spec = spec_of({"name": "adamw", "layer_decay": 0.75, "decay_norm_and_bias": False, "weight_decay": 0.05})
    groups = pytest.importorskip("timm.optim").param_groups_layer_decay(model, layer_decay=0.75)
    theirs = torch.optim.AdamW(groups, weight_decay=0.05)
    found = scales(model, build_optimizer(spec, model))
    assert found == scales(model, theirs)
    assert len(found) == len(list(model.parameters()))


def test_a_layer_learns_by_its_distance_from_the_head(make_recipe: MakeRecipe) -> None:
    """One step of plain descent: the learning rate of the step, times the factor of the layer."""
    optimizer = "{lr: 1.0, momentum: 0.0, weight_decay: 0.0, layer_decay: 0.5}"
    student = student_of(
        make_recipe("students.a.model={name: 'nets:Deep', depth: 1}", f"students.a.optimizer={optimizer}")
    )
    before = {name: each.detach().clone() for name, each in student.model.named_parameters()}
    student.learn(student.forward(torch.rand(4, 1, 8, 8), 0).square().sum(), 0.2)
    for name, parameter in student.model.named_parameters():
        factor = {"stem": 0.25, "blocks": 0.5, "head": 1.0}[name.split(".")[0]]
        assert parameter.grad is not None
        assert torch.equal(parameter, before[name].add(parameter.grad, alpha=-0.2 * factor))
    assert len(student.optimizer.param_groups) == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("students.a.optimizer.layer_decay=0", ["optimizer.layer_decay", "greater than 0"]),
        ("students.a.optimizer.layer_decay=1.1", ["optimizer.layer_decay", "less than or equal to 1"]),
        ("students.a.optimizer.name=lionn", ["students.0.optimizer", "lionn", "have sgd", "import string"]),
        ("students.a.optimizer={name: lion, momentum: 0.9}", ["optimizer.momentum", "unknown field"]),
        ("students.a.optimizer={name: rmsprop, alpha: 1.0}", ["optimizer.alpha", "less than 1"]),
        ("students.a.optimizer={name: 'torch.optim:Adagrad'}", ["optimizer.lr", "required"]),
        ("students.a.optimizer={name: 3}", ["students.0.optimizer", "3"]),
        ("students.a.optimizer=sgd", ["students.0.optimizer", "sgd"]),
        ("students.a.schedule.name=sawtooth", ["students.0.schedule", "sawtooth", "have multistep"]),
        ("students.a.schedule={name: cosine, min_lr: 9.0}", ["schedule.min_lr: 9.0", "optimizer.lr"]),
        ("students.a.schedule={name: onecycle, rise: 1.0}", ["schedule.rise", "less than 1"]),
        ("students.a.schedule={name: onecycle, warmup_epochs: 1}", ["schedule.warmup_epochs", "unknown"]),
        ("students.a.schedule={name: poly, power: 0}", ["schedule.power", "greater than 0"]),
        ("students.a.clip_grad_norm=0", ["clip_grad_norm", "greater than 0"]),
        ("students.a.label_smoothing=1.0", ["label_smoothing", "less than 1"]),
    ],
)
def test_mistakes_in_a_recipe(override: str, words: list[str], make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(override)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (
            "{name: 'nets:no_optimizer', lr: 1.0}",
            ["nets:no_optimizer", "gives str, not a torch"],
        ),
        ("{name: 'nets:absent', lr: 1.0}", ["nets:absent", "no attribute"]),
        ("{name: 'torch.optim:Adagrad', lr: 1.0, typo: 1}", ["torch.optim:Adagrad", "typo"]),
        ("{name: 'torch.optim:Adagrad', lr: 1.0, weight_decay: -1}", ["Adagrad", "-1"]),
    ],
)
def test_mistakes_in_an_own_optimiser(optimizer: str, words: list[str], make_recipe: MakeRecipe) -> None:
    with pytest.raises(ModelError) as caught:
        student_of(make_recipe(f"students.a.optimizer={optimizer}"))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert caught.value.student == "a"


def student_of(recipe: Any) -> Student:
    return Student(recipe, 0, classes=4, channels=1, device=torch.device("cpu"))


def test_a_missing_package_is_asked_for_by_name(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm.optim", None)
    with pytest.raises(ModelError, match=r"pip install 'kdcl_dist\[timm\]'"):
        student_of(make_recipe("students.a.optimizer={name: lamb}"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_gradient_is_clipped_as_a_whole(precision: str, make_recipe: MakeRecipe) -> None:
    """One step of plain descent moves the weights by the learning rate times the limit."""
    optimizer = "students.a.optimizer={lr: 1.0, momentum: 0.0, weight_decay: 0.0}"
    recipe = make_recipe(optimizer, "students.a.clip_grad_norm=0.01", f"students.a.precision={precision}")
    student = student_of(recipe)
    before = [each.detach().clone() for each in student.model.parameters()]
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8) % 4
    student.learn(student.loss(student.forward(images, 0), labels, None).total, lr=1.0)
    moved = [old - new.detach() for old, new in zip(before, student.model.parameters(), strict=True)]
    assert float(torch.cat([each.flatten() for each in moved]).norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_gradient_that_is_not_finite_is_skipped_by_every_optimiser(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe("students.a.optimizer={name: rmsprop}", "students.a.clip_grad_norm=1.0"))
    before = [each.detach().clone() for each in student.model.parameters()]
    loss = student.loss(student.forward(torch.randn(8, 1, 8, 8), 0), torch.arange(8) % 4, None).total
    assert float(student.learn(loss * torch.nan, lr=1.0)) == 1
    for old, new in zip(before, student.model.parameters(), strict=True):
        assert torch.equal(old, new)
