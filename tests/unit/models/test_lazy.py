"""Lazy layers get their sizes from images, before anything else looks at the network."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from cohorts import MakeRecipe, assert_same
from nets import Lazy
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import ModelError
from kdcl_dist.models.lazy import has_lazy_layers, initialise
from kdcl_dist.planning.survey import survey
from kdcl_dist.student.student import Student

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
CPU = torch.device("cpu")


def test_sizes_come_from_the_images_also_where_only_training_uses_a_layer() -> None:
    network = Lazy(4)
    assert has_lazy_layers(network)
    initialise(network, "nets:Lazy", IMAGES)
    assert not has_lazy_layers(network)
    assert not any(is_lazy(each) for each in chain(network.parameters(), network.buffers()))
    assert (network.hidden.in_features, network.extra.in_features) == (64, 8)
    assert type(network.hidden) is nn.Linear


def test_other_networks_take_no_pass() -> None:
    network = nn.Linear(1, 1)
    network.forward = None  # type: ignore[assignment, method-assign]
    initialise(network, "x:y", IMAGES)


class Unused(Lazy):
    """A layer without a size that no pass uses."""

    def __init__(self) -> None:
        super().__init__(4)
        self.old = nn.LazyLinear(3)


class Fails(Lazy):
    """Cannot take its images."""

    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError("a user's mistake")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Unused(), r"no pass uses old\.weight, .*remove that layer, or give it its sizes"),
        (Fails(4), r"fails on images of shape \(2, 1, 8, 8\): ArithmeticError: a user's mistake"),
    ],
)
def test_a_layer_that_gets_no_size_is_named(network: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        initialise(network, "nets:Lazy", IMAGES)


def test_a_student_s_lazy_weights_are_those_of_its_seed(make_recipe: MakeRecipe) -> None:
    def weights(*overrides: str, replica: int = 0) -> dict[str, Tensor]:
        training_data = TrainingData.open(make_recipe("students.a.model=nets:Lazy", *overrides))
        student = Student.of(training_data, 0, replica=replica, device=CPU)
        assert (
            student.parameters == sum(each.numel() for each in student.state_dict()["model"].values()) - 129
        )
        trained = {id(each) for each in student.optimizer.param_groups[0]["params"]}
        assert trained == set(map(id, student.model.parameters()))
        return student.state_dict()["model"]

    first = weights()
    torch.manual_seed(77)
    assert_same(weights("students.a.replicas=2", replica=1), first)
    assert not torch.equal(weights("seed=1")["hidden.weight"], first["hidden.weight"])
    assert not torch.equal(first["hidden.weight"][0, :8], first["linear.weight"][0])


def test_a_plan_counts_the_gradient_of_a_lazy_network(make_recipe: MakeRecipe) -> None:
    from kdcl_dist.planning.given import parse_given

    recipe = make_recipe("students.a.model=nets:Lazy")
    given = parse_given(["a=0.1", "b=0.1"], recipe)
    assert survey(recipe, 2, given).model.students[0].gradient_bytes == 4 * (64 * 8 + 8 + 8 * 4 + 4 + 8 + 1)
