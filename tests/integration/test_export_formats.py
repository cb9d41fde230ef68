"""Every built-in network in a process that has no kdcl_dist: it loads and gives the same logits."""

from __future__ import annotations

from pathlib import Path

import exporting
import pytest
import torch
from torch import Tensor

from kdcl_dist import models
from kdcl_dist.errors import ModelError
from kdcl_dist.export.formats import FORMATS
from kdcl_dist.export.preprocessing import Kind
from kdcl_dist.export.writing import write
from kdcl_dist.models.registry import GROUPS

Case = tuple[Kind, str, int]

#: Format, network, channels: all networks as weights, and each kind of building block as a program.
CASES: list[Case] = [
    *(("state_dict", name, 3) for name in models.names()),
    ("state_dict", "resnet18", 1),
    ("state_dict", "mlp", 1),
    ("safetensors", "cnn_small", 1),
    ("safetensors", "resnet20", 3),
    ("safetensors", "mobilenet_v2_x0_5", 3),
    ("torch_export", "resnet20", 3),
    ("torch_export", "shufflenet_v2_x0_5", 3),
    ("onnx", "cnn_small", 1),
    ("onnx", "wrn_16_2", 3),
]
SIZE = 32


def images(channels: int) -> Tensor:
    """Another number of images than the export was made with."""
    return torch.randn(3, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(channels))


Both = dict[Case, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Of each case, those of the network here and those of its export in a fresh process."""
    scratch = tmp_path_factory.mktemp("exports")
    torch.set_num_threads(1)
    expected, folders = {}, {}
    for kind, name, channels in CASES:
        network = exporting.random_network(name, 4, channels, SIZE)
        folder = scratch / f"{kind}-{name}-{channels}"
        folder.mkdir()
        write(exporting.source_of(name, network, scratch, channels=channels, size=SIZE), kind, folder)
        with torch.no_grad():
            expected[kind, name, channels] = network(images(channels))
        folders[kind, name, channels] = folder
    given = {(channels, SIZE, SIZE): images(channels) for channels in (1, 3)}
    found = exporting.in_a_fresh_process(list(folders.values()), given, scratch)
    return {case: (expected[case], found[str(folder)]) for case, folder in folders.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_same_logits_without_this_package(case: Case, logits: Both) -> None:
    expected, found = logits[case]
    assert found.shape == expected.shape == (3, 4)
    assert float(expected.std()) > 0.01
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_format_at_the_usual_size(name: str, tmp_path: Path) -> None:
    """PyTorch's own rounding, against float64, is more than 1e-5 in the deepest of these random networks."""
    usual = next(usual for usual, group in GROUPS.items() if name in group)
    channels, size, _ = usual.shape_CHW
    network = exporting.random_network(name, 4, channels, size)
    source = exporting.source_of(name, network, tmp_path, channels=channels, size=size)
    folders = [tmp_path / kind for kind in FORMATS]
    for kind, folder in zip(FORMATS, folders, strict=True):
        folder.mkdir()
        write(source, kind, folder)
    x = torch.randn(3, *usual.shape_CHW)
    found = exporting.in_a_fresh_process(folders, {usual.shape_CHW: x}, tmp_path)
    with torch.no_grad():
        expected = network(x)
        rounding = float((network.double()(x.double()) - expected).abs().max())
    for folder in folders:
        difference = float((found[str(folder)] - expected).abs().max())
        print(f"{name} {folder.name}: {difference:.1e}; PyTorch's own rounding: {rounding:.1e}")
        assert difference <= (1e-5 + 4 * rounding if folder.name == "onnx" else 0)


def test_what_a_format_cannot_take(tmp_path: Path) -> None:
    kinds: list[tuple[Kind, str, str]] = [
        ("onnx", "nets:Bessel", "No ONNX function found for .*bessel_j0"),
        ("torch_export", "nets:Branches", "data-dependent"),
        ("torch_export", "nets:EightOnly", "batch"),
    ]
    for kind, name, words in kinds:
        network = exporting.random_network(name, 4, 1, 8)
        source = exporting.source_of(name, network, tmp_path, channels=1, size=8)
        with pytest.raises(ModelError, match=f"cannot be exported as {kind}: .*{words}"):
            write(source, kind, tmp_path)
        (tmp_path / "plain").mkdir(exist_ok=True)
        write(source, "state_dict", tmp_path / "plain")
