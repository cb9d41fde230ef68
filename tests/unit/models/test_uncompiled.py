"""Networks that compile themselves are taken apart: their state has the plain names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import Tiny, compiled
from torch import nn

from kdcl_dist import models
from kdcl_dist.models.compilation import uncompiled

KEYS = Tiny(4, 1).state_dict().keys()


def wrapped_part() -> nn.Module:
    network = Tiny(4, 1)
    network.norm = torch.compile(network.norm)
    return network


def in_place() -> nn.Module:
    network = Tiny(4, 1)
    network.conv.compile()
    return network


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.compile(Tiny(4, 1)),
        wrapped_part,
        in_place,
        lambda: compiled(4, 1),
    ],
)
def test_all_forms_are_found(make: Callable[[], nn.Module]) -> None:
    network, found = uncompiled(make())
    assert found
    assert type(network) is Tiny
    assert network.state_dict().keys() == KEYS
    assert all(module._compiled_call_impl is None for module in network.modules())
    network(torch.zeros(2, 1, 8, 8))
    assert network.training


def test_a_part_under_two_names_is_found_twice() -> None:
    part = torch.compile(nn.Linear(2, 2))
    network, found = uncompiled(nn.Sequential(part, part))
    assert found
    assert list(network.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_other_networks_are_as_they_were() -> None:
    network = Tiny(4, 1)
    assert uncompiled(network) == (network, False)


def test_a_network_by_name_is_plain() -> None:
    assert models.build("nets:compiled", 4, 1).state_dict().keys() == KEYS
