"""Networks: published sizes, shapes, equal starts, and what a user can get wrong."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from kdcl_dist import models
from kdcl_dist.cli import kdcl
from kdcl_dist.config.model import LIBRARIES
from kdcl_dist.errors import ModelError
from kdcl_dist.models.built_in import COSTS, Cost, Usual
from kdcl_dist.models.pretrained import load_weights
from kdcl_dist.models.registry import GROUPS

#: Parameters. torchvision's documentation of its weights; Keras' MobileNetV2 of alpha 0.5; for 10 classes
#: He et al. (2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million) and Zagoruyko and Komodakis (0.7 and 2.2
#: million), in full as public implementations have them; VGG-16's convolutions and norms of torchvision's
#: vgg16_bn with one linear layer.
PUBLISHED = {
    ("resnet18", 1000): 11_689_512,
    ("resnet34", 1000): 21_797_672,
    ("resnet50", 1000): 25_557_032,
    ("resnet101", 1000): 44_549_160,
    ("mobilenet_v2", 1000): 3_504_872,
    ("mobilenet_v2_x0_5", 1000): 1_968_680,
    ("shufflenet_v2_x0_5", 1000): 1_366_792,
    ("shufflenet_v2_x1_0", 1000): 2_278_604,
    ("shufflenet_v2_x1_5", 1000): 3_503_624,
    ("shufflenet_v2_x2_0", 1000): 7_393_996,
    ("resnet20", 10): 269_722,
    ("resnet32", 10): 464_154,
    ("resnet44", 10): 658_586,
    ("resnet56", 10): 853_018,
    ("resnet110", 10): 1_727_962,
    ("wrn_16_2", 10): 691_674,
    ("wrn_40_2", 10): 2_243_546,
    ("vgg16", 10): 14_723_136 + 5_130,
}

#: Millions of multiply-adds: torchvision's documentation of its weights; its authors' release for the half as
#: wide MobileNetV2; for CIFAR Li et al. (2017, "Pruning filters for efficient ConvNets", table 1).
MILLIONS = {
    "resnet18": 1814,
    "resnet34": 3664,
    "resnet50": 4089,
    "resnet101": 7801,
    "mobilenet_v2": 301,
    "mobilenet_v2_x0_5": 97,
    "shufflenet_v2_x0_5": 40,
    "shufflenet_v2_x1_0": 145,
    "shufflenet_v2_x1_5": 296,
    "shufflenet_v2_x2_0": 583,
    "resnet56": 125,
    "resnet110": 253,
    "vgg16": 313,
}


@pytest.mark.parametrize(("name", "classes"), PUBLISHED, ids=str)
def test_parameters_equal_the_published_number(name: str, classes: int) -> None:
    assert parameters(models.build(name, classes)) == PUBLISHED[name, classes]


def test_the_table_has_the_networks_in_their_order() -> None:
    assert [(usual, list(group)) for usual, group in COSTS.items()] == [
        (usual, list(group)) for usual, group in GROUPS.items()
    ]


@pytest.mark.parametrize(("usual", "name"), [(u, name) for u, group in GROUPS.items() for name in group])
def test_the_table_equals_the_network_and_the_published_number(usual: Usual, name: str) -> None:
    network = models.build(name, usual.classes, usual.shape_CHW[0])
    found = Cost(parameters(network), multiply_adds(network, usual.shape_CHW))
    assert COSTS[usual][name] == found
    if name in MILLIONS:
        assert round(found.multiply_adds / 1e6) == MILLIONS[name]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, shape_CHW: tuple[int, int, int]) -> int:
    """Output values of each convolution and linear layer times the inputs that each is summed over."""
    total = 0

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()  # type: ignore[union-attr,operator]

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add)
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape_CHW))
    return total


def test_the_list_is_an_aligned_table() -> None:
    table, _, others = CliRunner().invoke(kdcl, ["models"]).output.partition("\n\n")
    assert all(f"  {prefix}:" in others for prefix in LIBRARIES)
    lines = table.splitlines()
    assert {line.split()[0] for line in lines if line.startswith("  ")} == set(models.names())
    assert len({len(line) for line in lines}) == 1
    assert next(line for line in lines if " resnet50 " in line).split() == [
        "resnet50",
        "25,557,032",
        "4,089,184,256",
    ]
    assert [line.split("  ")[0] for line in lines if not line.startswith("  ")] == [
        "8x8x1, 10 classes",
        "32x32x3, 100 classes",
        "224x224x3, 1000 classes",
    ]


def test_the_count_of_a_small_network_by_hand() -> None:
    found = COSTS[Usual((1, 8, 8), 10)]["cnn_small"].multiply_adds
    assert found == 8 * 8 * 16 * 9 + 4 * 4 * 32 * 16 * 9 + 32 * 10


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("channels", [1, 3])
def test_one_step_reaches_every_parameter(name: str, channels: int) -> None:
    torch.manual_seed(0)
    network = models.build(name, 7, channels)
    logits = network(torch.randn(2, channels, 32, 32))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("name", ["mlp", "cnn_small", "resnet20", "wrn_16_2", "mobilenet_v2_x0_5"])
def test_the_same_seed_gives_the_same_start(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(models.build(name, 5, 1).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_own_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def plain(num_classes): return nn.Linear(4, num_classes)\n"
        "def channels(num_classes, in_channels): return nn.Conv2d(in_channels, num_classes, 1)\n"
        "def anything(**kwargs): return nn.Linear(kwargs['in_channels'], kwargs['num_classes'])\n"
        "def more(num_classes, width): return nn.Linear(width, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert models.build("own_nets:plain", 3, 2).out_features == 3
    assert models.build("own_nets:channels", 3, 2).in_channels == 2
    assert models.build("own_nets:anything", 3, 2).in_features == 2
    for name, words in (
        ("own_nets:more", "width"),
        ("own_nets:no", "no attribute"),
        ("reznet18", "'resnet18'"),
    ):
        with pytest.raises(ModelError, match=words):
            models.build(name, 3, 2)


def test_weights_are_a_regular_file_that_unfolds_to_no_more(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    for name, words in {"fifo": "not a regular file", "bomb": "it unpacks to 10,000,000 bytes"}.items():
        with pytest.raises(ModelError, match=f"^weights '.*/{name}' cannot be read: {words}"):
            load_weights(nn.Linear(1, 1), str(tmp_path / name))
