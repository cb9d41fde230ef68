"""The outputs that networks may have, and what is said of others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdcl_dist import models
from kdcl_dist.errors import ModelError
from kdcl_dist.models.outputs import accessor, give_logits

IMAGES = torch.rand(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "access"), [("Plain", ""), ("Entry", '["logits"]'), ("Attribute", ".logits")]
)
def test_all_outputs_are_logits(name: str, access: str) -> None:
    network = models.build(f"nets:{name}", 4, 1).eval()
    expected = network.get_submodule("linear")(IMAGES.flatten(1))
    for each in (network, copy.deepcopy(network)):
        assert torch.equal(each(IMAGES), expected)
    assert torch.equal(torch.export.export(network, (IMAGES,)).module()(IMAGES), expected)
    assert accessor(network, IMAGES) == access
    bare = eval(f"network.forward(images){access}", {"network": network, "images": IMAGES})  # as a card says
    assert torch.equal(bare, expected)


def test_other_outputs_are_named() -> None:
    network = models.build("nets:Tuples", 4)
    with pytest.raises(ModelError, match=r"model 'nets:Tuples' returns tuple without logits: return logits"):
        network(IMAGES)


def test_a_network_of_torchscript_stays_as_it_is() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        network = torch.jit.trace(nn.Linear(64, 4), torch.rand(2, 64))
    give_logits(network, "scripted")
    assert network(torch.rand(3, 64)).shape == (3, 4)
