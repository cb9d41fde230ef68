"""What a GPU asks of a student, shown without one: no wait in a step, layouts, fused optimisers.

A meta tensor has a shape and no numbers: whatever would make a host wait for a GPU's numbers raises.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cohorts import MakeRecipe, assert_same
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdcl_dist import models
from kdcl_dist.config import optim
from kdcl_dist.distillation.losses import distillation_loss
from kdcl_dist.errors import ModelError
from kdcl_dist.student.dry_run import try_step
from kdcl_dist.student.optimizer import build_optimizer, load_optimizer
from kdcl_dist.student.student import Student

META, CPU = torch.device("meta"), torch.device("cpu")
METHODS = ("none", "naive", "linear", "min_logit", "mean", "dml")


def student_of(make_recipe: MakeRecipe, *overrides: str, device: torch.device = CPU) -> Student:
    return Student(make_recipe(*overrides), 0, classes=4, channels=1, device=device)


def steps(count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 6, 1, 8, 8, generator=generator)
    targets = torch.randn(count, 6, 4, generator=generator).log_softmax(dim=2)
    return [(x, torch.arange(6) % 4, p) for x, p in zip(images, targets, strict=True)]


def take(student: Student, number: int, step: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    images, labels, target = step
    losses = student.loss(student.forward(images, number), labels, target)
    student.learn(losses.total, 0.05)
    return losses.total.detach()


# -- no wait -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", [[], ["students.a.channels_last=true"]], ids=["plain", "channels_last"])
def test_a_step_never_waits_for_numbers(method: str, more: Sequence[str], make_recipe: MakeRecipe) -> None:
    overrides = [f"distillation.method={method}", "distillation.logit_noise=0.1", *more]
    student = student_of(make_recipe, *overrides, device=META)
    images, labels, target = steps(1)[0]
    given = {"none": None, "dml": torch.stack([target, target])}.get(method, target)
    for covered in (None, torch.tensor([True, False, True, True, False, True])):
        logits = student.forward(images, 0)
        sent = student.contribution(logits, 0)
        losses = student.loss(logits, labels, given, covered)
        student.learn(losses.total, 0.1)
        student.undo_forward()
        assert {each.device for each in (logits, sent, *losses)} == {META}
    assert student.forward(images, 1, learns=False).device == META


def test_what_waits_would_be_found(make_recipe: MakeRecipe) -> None:
    """The test above can fail: it would see each of these."""
    student = student_of(make_recipe, device=META)
    images, labels, target = steps(1)[0]
    logits = student.forward(images, 0)
    losses = student.loss(logits, labels, target)
    waits = [
        lambda: float(losses.total.detach()),
        lambda: bool(losses.total > 0),
        logits.tolist,
        logits.cpu,
        lambda: torch.empty(logits.shape).copy_(logits.detach()),
        lambda: distillation_loss(logits, logits.detach(), 2.0, labels.to(META) > 0),
        lambda: student.conflict(losses),  # on the steps of analysis.every_steps only
    ]
    for wait in waits:
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()


class Reads(TorchDispatchMode):
    """Counts how often a number is brought to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_loss_scale_is_read_only_without_a_fused_optimiser(
    name: str, fused: bool, make_recipe: MakeRecipe
) -> None:
    student = student_of(make_recipe, "students.a.precision=fp16", f"students.a.optimizer={{name: {name}}}")
    student.optimizer = build_optimizer(student.spec.optimizer, student.model, fused)
    images, labels, target = steps(1)[0]
    take(student, 0, (images, labels, target))
    losses = student.loss(student.forward(images, 1), labels, target)
    with Reads() as reads:
        student.learn(losses.total, 0.05)
    # Plain Adam also reads each parameter's number of steps, which lies on the CPU on every device.
    counts = 0 if fused or name == "sgd" else len(list(student.model.parameters()))
    assert (reads.count["_local_scalar_dense"] > counts) == (not fused), reads.count


# -- fused optimisers ----------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_fused_optimiser_skips_a_bad_gradient_by_itself(
    name: str, at: int, make_recipe: MakeRecipe
) -> None:
    batch = steps(1)[0]
    sound, bad = (student_of(make_recipe, f"students.a.optimizer={{name: {name}}}") for _ in range(2))
    for student in (sound, bad):
        student.optimizer = build_optimizer(student.spec.optimizer, student.model, fused=True)
    for number in (each for each in range(4) if each != at):
        take(sound, number, batch)
    for number in range(4):
        loss = bad.loss(bad.forward(batch[0], number), *batch[1:]).total
        with Reads() as reads:
            skipped = bad.learn(loss * (torch.nan if number == at else 1), 0.05)
        assert not reads.count["_local_scalar_dense"]
        assert float(skipped) == (number == at)
        if number == at:
            bad.undo_forward()
    assert_same(bad.model.state_dict(), sound.model.state_dict())


SPECS = [
    optim.SGD(momentum=0.0, weight_decay=0.0),
    optim.SGD(weight_decay=0.1),
    optim.SGD(nesterov=True),
    optim.Adam(weight_decay=0.1),
    optim.AdamW(),
]


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()


def push(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    optimizer.step()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fused_optimisers_give_the_same_weights(spec: optim.Optimizer) -> None:
    networks = [small(), small()]
    for network, fused in zip(networks, (True, False), strict=True):
        optimizer = build_optimizer(spec, network, fused)
        for number in range(4):
            push(network, optimizer, number)
    for left, right in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.allclose(left, right, rtol=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_a_state_goes_on_with_the_other_kind(spec: optim.Optimizer, fused: bool) -> None:
    """As where a run of a GPU is resumed on a CPU, or the other way round."""
    first = small()
    optimizer = build_optimizer(spec, first, fused)
    push(first, optimizer, 0)
    second = copy.deepcopy(first)
    other = build_optimizer(spec, second, not fused)
    load_optimizer(other, copy.deepcopy(optimizer.state_dict()))  # which shares its tensors
    assert bool(other.param_groups[0]["fused"]) == (not fused)
    push(first, optimizer, 1)
    push(second, other, 1)
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=1e-12)


def test_on_the_cpu_optimisers_are_the_plain_ones() -> None:
    assert not build_optimizer(optim.SGD(), small()).defaults["fused"]


# -- channels_last -------------------------------------------------------------------------------


def test_channels_last_changes_the_layout_and_little_else(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    plain, last = (
        student_of(make_recipe, f"students.a.channels_last={value}") for value in ("false", "true")
    )
    weight = last.model.get_parameter("features.3.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    seen: list[bool] = []
    last.model.get_submodule("features.3").register_forward_hook(
        lambda module, given, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    for number, step in enumerate(steps(3)):
        assert torch.allclose(take(plain, number, step), take(last, number, step), rtol=1e-5)
    assert seen == [True] * 3
    torch.save(last.state_dict(), tmp_path / "part.pt")
    state = torch.load(tmp_path / "part.pt", weights_only=True)
    models.build("cnn_small", 4, 1).load_state_dict(state["model"])
    again = student_of(make_recipe, "students.a.channels_last=true")
    again.load_state_dict(state)
    for number, step in enumerate(steps(5)[3:], start=3):
        assert torch.equal(take(last, number, step), take(again, number, step))
    assert_same(last.state_dict()["model"], again.state_dict()["model"])


def test_networks_that_need_the_other_layout_are_named(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, "students.a.model=nets:Views", "students.a.channels_last=true")
    images, labels, _ = steps(1)[0]
    with pytest.raises(ModelError, match=r"student 'a'.*nets:Views.*view size"):
        try_step(student, images[:2], labels[:2])
    try_step(student_of(make_recipe, "students.a.model=nets:Views"), images[:2], labels[:2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_the_benchmark_says_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu

    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 2
    assert "no GPU" in capsys.readouterr().err
