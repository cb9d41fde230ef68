"""The dry run: it names what is wrong with a network, and leaves the student as it was."""

from __future__ import annotations

import copy
import mmap
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import MakeRecipe, assert_same
from torch import Tensor, nn

from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import ModelError
from kdcl_dist.models.transfer import head_of
from kdcl_dist.student.dry_run import check_head, check_output, dry_run, try_step
from kdcl_dist.student.student import Student

IMAGES, LABELS = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])


class Network(nn.Module):
    """A linear layer with a function of its logits and its mode."""

    def __init__(self, change: Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(64, 4), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.linear(x.flatten(1)), self.training)


def student_of(make_recipe: MakeRecipe, *overrides: str) -> Student:
    return Student(make_recipe(*overrides), 0, classes=4, channels=1, device=torch.device("cpu"))


def with_network(make_recipe: MakeRecipe, change: Callable[[Tensor, bool], Any]) -> Student:
    student = student_of(make_recipe)
    student.model = Network(change)
    return student


def fails(*_: Any) -> Tensor:
    raise ZeroDivisionError("a user's mistake\nin two lines")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fails, ["fails on images of shape (2, 1, 8, 8)", "ZeroDivisionError: a user's mistake"]),
        (lambda z, _: z[:, :3], ["returns (2, 3)", "logits of shape (2, 4): 4 classes"]),
        (lambda z, _: z[:1], ["returns (1, 4)", "logits of shape (2, 4)"]),
        (lambda z, _: z[:, :, None], ["returns (2, 4, 1)"]),
        (lambda z, _: (z, z), ["returns tuple"]),
        (lambda z, _: None, ["returns NoneType"]),
        (lambda z, _: sys.exit("no licence"), ["fails on images of shape", "SystemExit: no licence"]),
    ],
)
def test_a_wrong_output_is_named(
    change: Callable[[Tensor, bool], Any], words: list[str], make_recipe: MakeRecipe
) -> None:
    student = with_network(make_recipe, change)
    with pytest.raises(ModelError) as caught:
        check_output(student, IMAGES)
    message = str(caught.value)
    assert (caught.value.student, caught.value.exit_code) == ("a", 2)
    assert "\n" not in message
    assert all(word in message for word in ["'cnn_small'", *words]), message
    assert student.model.training, "the mode is the one before"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda z, training: fails() if training else z, "ZeroDivisionError: a user's mistake"),
        (lambda z, training: z.detach(), "does not require grad"),
    ],
)
def test_a_step_that_fails_is_named(
    change: Callable[[Tensor, bool], Any], words: str, make_recipe: MakeRecipe
) -> None:
    student = with_network(make_recipe, change)
    check_output(student, IMAGES)
    with pytest.raises(ModelError, match=words) as caught:
        try_step(student, IMAGES, LABELS)
    assert "cannot take a training step on images of shape (2, 1, 8, 8)" in str(caught.value)


def test_a_teacher_takes_no_step(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("distillation={method: teacher, teacher: a}", "students.a.weights=a.pt")
    student = Student(recipe, 0, classes=4, channels=1, device=torch.device("cpu"), resumed=True)
    student.model = Network(lambda z, training: z.detach())
    try_step(student, IMAGES, LABELS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_student_stays_as_it_was(precision: str, make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, f"students.a.precision={precision}")
    before = copy.deepcopy(student.state_dict())
    dry_run(student, TrainingData.open(student.recipe), 0)
    assert_same(student.state_dict()["model"], before["model"])
    assert student.state_dict()["optimizer"] == before["optimizer"]
    assert student.model.training
    assert all(parameter.grad is None for parameter in student.model.parameters())


class Uncopied(nn.Module):
    """A network that `copy.deepcopy` refuses, and whose steps change buffers, attributes, parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.passes = threading.Lock(), 0
        self.norm, self.linear = nn.BatchNorm2d(1), nn.Linear(64, 4)
        self.register_buffer("hidden", torch.zeros(3), persistent=False)
        self.scale = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
            self.get_buffer("hidden").add_(1)
            self.scale.mul_(2)
        logits: Tensor = self.linear(torch.dropout(self.norm(x).flatten(1), 0.5, self.training)) * self.scale
        return logits


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_that_cannot_be_copied_is_tried_and_stays_as_it_was(
    fails: bool, make_recipe: MakeRecipe
) -> None:
    student = student_of(make_recipe)
    network = student.model = Uncopied()
    with pytest.raises(TypeError, match="pickle"):
        copy.deepcopy(network)
    before = [each.detach().clone() for each in (*network.parameters(), *network.buffers())]
    random_state = torch.get_rng_state()
    if fails:
        with pytest.raises(ModelError, match="IndexError: Target"):
            try_step(student, IMAGES, torch.tensor([0, 9]))
    else:
        try_step(student, IMAGES, LABELS)
    for value, old in zip((*network.parameters(), *network.buffers()), before, strict=True):
        assert torch.equal(value, old)
    assert (network.passes, network.training, network.norm.training) == (0, True, True)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


class Unused(Network):
    """With a layer that no pass uses."""

    def __init__(self) -> None:
        super().__init__(lambda z, _: z)
        self.old = nn.Linear(3, 3)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_parameter_that_no_pass_uses_is_no_mistake(replicas: int, make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, f"students.a.replicas={replicas}")
    student.model = Unused()
    try_step(student, IMAGES, LABELS)
    assert student.replicas is None
    assert student.training_network is student.network


@pytest.mark.parametrize(("batch_size", "replicas"), [(2, 1), (2, 2), (16, 1), (16, 4)])
def test_a_step_is_tried_with_the_share_of_a_replica(
    batch_size: int, replicas: int, make_recipe: MakeRecipe
) -> None:
    student = student_of(make_recipe, f"batch_size={batch_size}", f"students.a.replicas={replicas}")
    seen: list[int] = []
    student.model = Network(lambda z, training: seen.append(len(z)) or z if training else z)
    dry_run(student, TrainingData.open(student.recipe), 0)
    assert set(seen) == {batch_size // replicas}


class NormOfFeatures(nn.Module):
    """Its batch norm takes no single sample in training, as it has one value a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(64, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.norm(self.linear(x.flatten(1)))
        return logits


def test_a_share_of_one_sample_under_batch_norm(make_recipe: MakeRecipe) -> None:
    fields = ["batch_size=2", "students.a.replicas=2"]
    plain, synchronised = (
        student_of(make_recipe, *fields, f"students.a.sync_batchnorm={value}") for value in ("false", "true")
    )
    for student in (plain, synchronised):
        student.model = NormOfFeatures()
    words = r"one sample: raise batch_size \(2\) or lower students\.a\.replicas \(2\)\): ValueError: Expe"
    with pytest.raises(ModelError, match=words) as caught:
        dry_run(plain, TrainingData.open(plain.recipe), 0)
    assert caught.value.exit_code == 2
    dry_run(synchronised, TrainingData.open(synchronised.recipe), 0)
    assert "forward" not in vars(synchronised.model.get_submodule("norm"))


def test_a_last_test_batch_of_one_sample(make_recipe: MakeRecipe) -> None:
    """A network that drops a dimension of size one fails on it alone, and after an epoch."""
    fine, fails = student_of(make_recipe), student_of(make_recipe, "batch_size=7")
    for student in (fine, fails):
        student.model = Network(lambda z, training: z.squeeze(0))
    training_data = TrainingData.open(fails.recipe)
    assert len(training_data.test) % 7 == 1
    assert len(training_data.test) % fine.recipe.batch_size != 1
    dry_run(fine, TrainingData.open(fine.recipe), 0)
    words = r"returns \(4,\) .* shape \(1, 4\) \(batch \d of \d of data\.test\)"
    with pytest.raises(ModelError, match=words):
        dry_run(fails, training_data, 0)


class _Once(torch.autograd.Function):
    """A backward pass that goes once, as that of reentrant checkpointing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.passes = 0
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        ctx.passes += 1
        if ctx.passes > 1:
            raise ArithmeticError("gone")
        return gradient


def test_the_second_backward_pass_is_tried_where_the_analysis_takes_one(make_recipe: MakeRecipe) -> None:
    for every, refused in ((2, True), (0, False)):
        student = student_of(make_recipe, f"analysis.every_steps={every}")
        student.model = Network(lambda z, training: _Once.apply(z))
        if refused:
            with pytest.raises(
                ModelError, match=r"analysis\.every_steps: 2: .*set it to 0: ArithmeticError: gone"
            ):
                try_step(student, IMAGES, LABELS)
        else:
            try_step(student, IMAGES, LABELS)


class Sparse(nn.Module):
    """Its gradient is of a kind that few optimisers take."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 4, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.table(x.flatten(1).long().clamp(0, 63)).sum(1)
        return logits


def test_the_optimiser_takes_part(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, "students.a.optimizer={name: adamw}")
    student.model = Sparse()
    with pytest.raises(ModelError, match="cannot take a training step"):
        try_step(student, IMAGES, LABELS)


class MakesItsHead(nn.Module):
    """Makes a layer in the first pass, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 8), None

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x.flatten(1))
        if self.head is None:
            self.head = nn.Linear(features.shape[1], 4)
        logits: Tensor = self.head(features)
        return logits


def test_parameters_that_the_optimiser_would_not_know(make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe)
    student.model = MakesItsHead()
    with pytest.raises(ModelError, match=r"makes parameters in its first pass \(head\.weight\)"):
        dry_run(student, TrainingData.open(student.recipe), 0)


def test_the_peak_of_memory_is_that_of_a_real_share(make_recipe: MakeRecipe) -> None:
    """What the process has within a pass, whatever a system that is short of memory takes from it later.

    The memory is new to the process: what it has freed before, it may still hold and give out again.
    """
    student, resident = student_of(make_recipe), list[int]()

    def takes_200_megabytes(z: Tensor, training: bool) -> Tensor:
        large = np.frombuffer(mmap.mmap(-1, 200_000_000 if training else 1), np.uint8)
        large.fill(1)
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        return z + 0 * float(large[0])

    student.model = Network(takes_200_megabytes)
    peak = dry_run(student, TrainingData.open(student.recipe), 0)
    assert max(resident) > 150e6 + min(resident)
    assert peak > max(resident) - 1e6  # what the kernel's counts may differ by


class Heads(nn.Module):
    """A body, and the mean of the named heads; `last` is the last linear layer."""

    def __init__(self, *used: str) -> None:
        super().__init__()
        self.body, self.used = nn.Linear(64, 4), used
        self.convolution = nn.Conv1d(4, 4, 1)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x.flatten(1)).relu()
        return torch.stack([self._head(name, features) for name in self.used]).mean(0)

    def _head(self, name: str, features: Tensor) -> Tensor:
        given = features[:, :, None] if name == "convolution" else features
        logits: Tensor = self.get_submodule(name)(given)
        return logits.flatten(1)


@pytest.mark.parametrize(
    ("used", "words"),
    [
        (["first", "last"], "another head beside 'last' .*'first'"),
        (["first"], "another head beside 'last' .*'first'"),
        (["convolution", "last"], "another head beside 'last'"),
        (["last"], None),
    ],
)
def test_a_transferred_network_has_one_head(
    used: list[str], words: str | None, make_recipe: MakeRecipe
) -> None:
    student = student_of(make_recipe)
    student.model, student.head = Heads(*used), "last"
    before = copy.deepcopy(student.model.state_dict())
    if words is None:
        check_head(student, "last", IMAGES)
    else:
        with pytest.raises(ModelError, match=rf"students\.a\.transfer: .*{words}"):
            check_head(student, "last", IMAGES)
    assert_same(student.model.state_dict(), before)


@pytest.mark.parametrize("name", ["mlp", "cnn_small", "resnet20", "wrn_16_2"])
def test_built_in_networks_have_one_head(name: str, make_recipe: MakeRecipe) -> None:
    student = student_of(make_recipe, f"students.a.model={name}")
    check_head(student, head_of(student.model, name, 4), IMAGES)
