"""The layers of networks from input to head, by their structure and by timm's own grouping."""

from __future__ import annotations

import pytest
import torch
from nets import Deep
from torch import nn

from kdcl_dist import models
from kdcl_dist.config.model import Model
from kdcl_dist.models.layers import layers_of


def starts(network: nn.Module) -> dict[int, list[str]]:
    """The parameters of each layer."""
    found: dict[int, list[str]] = {}
    for name, layer in layers_of(network).items():
        found.setdefault(layer, []).append(name)
    assert sorted(found) == list(range(len(found)))
    assert {name for names in found.values() for name in names} == {
        name for name, _ in network.named_parameters()
    }
    return dict(sorted(found.items()))


def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return models.build(Model(name=name), 5, 3)


def test_lists_are_opened_and_norms_follow() -> None:
    found = starts(Deep(4, 1, depth=2))
    assert [names[0] for names in found.values()] == [
        "stem.weight", "blocks.0.0.weight", "blocks.1.0.weight", "head.weight",
    ]  # fmt: skip
    assert found[1] == [f"blocks.0.{part}" for part in ("0.weight", "0.bias", "1.weight", "1.bias")]


def test_blocks_of_torchvision_are_layers() -> None:
    vit = starts(meta("torchvision:vit_b_16"))
    assert len(vit) == 14
    assert vit[0] == ["class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"]
    assert all(name.startswith("encoder.layers.encoder_layer_4.") for name in vit[5])
    assert vit[12][-2:] == ["encoder.ln.weight", "encoder.ln.bias"]
    assert vit[13] == ["heads.head.weight", "heads.head.bias"]
    assert len(starts(meta("torchvision:mobilenet_v2"))) == 20  # stem, 17 blocks, last convolution, head


def test_a_network_without_lists() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.norm, self.first, self.head = nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.again = self.first

    assert layers_of(Two()) == {
        "scale": 0, "norm.weight": 0, "norm.bias": 0, "first.weight": 0, "first.bias": 0, "head.weight": 1,
        "head.bias": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_the_same_layers_as_timms(name: str) -> None:
    """A ResNet by its structure has the blocks that timm's expressions name."""
    pytest.importorskip("timm")
    assert layers_of(meta(name)) == layers_of(meta(f"timm:{name}"))
