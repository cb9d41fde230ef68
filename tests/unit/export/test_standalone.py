"""Networks with arguments, and of libraries, without this package: the code of a card, and config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import exporting
import pytest
import torch

from kdcl_dist import models
from kdcl_dist.config.model import Model
from kdcl_dist.export.prediction import Export
from kdcl_dist.export.standalone import call_without_package, module_without_package
from kdcl_dist.export.writing import write

VIT: dict[str, Any] = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 32}
SMALL = VIT | {"num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("name", "arguments", "channels", "code"),
    [
        ("resnet18", {}, 3, "torchvision.models.resnet18(num_classes=4)"),
        ("mobilenet_v2_x0_5", {}, 3, "torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.5)"),
        ("torchvision:resnet18", {"zero_init_residual": True}, 3, "(num_classes=4, zero_init_residual=True)"),
        ("torchvision:resnet18", {"zero_init_residual": True}, 1, None),
        ("mlp", {"hidden": 7}, 1, None),
        ("timm:resnet10t", {"stem_width": 8}, 1, "('resnet10t', num_classes=4, in_chans=1, stem_width=8)"),
    ],
)
def test_the_code_gives_the_network(
    name: str, arguments: dict[str, Any], channels: int, code: str | None
) -> None:
    model = Model.model_validate({"name": name, **arguments})
    call, scope = call_without_package(model, 4, channels), {}
    with torch.device("meta"):
        if code is None:
            assert call is None
            exec(module_without_package(model, 4, channels) or "", scope)
            made = scope["build"]()
        else:
            assert call is not None
            assert call.endswith(code)
            library = call.partition(".")[0]
            made = eval(call, {library: pytest.importorskip(library)})
        expected = models.build(model, 4, channels)
    shapes = {key: value.shape for key, value in made.state_dict().items()}
    assert shapes == {key: value.shape for key, value in expected.state_dict().items()}


def test_a_network_of_transformers_takes_its_config_along(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    name = "hf:vit"
    model = Model.model_validate({"name": name, **SMALL})
    network = exporting.random_network(model, 4, 1, 8)
    source = exporting.source_of(model, network, tmp_path, channels=1, size=8)
    (folder := tmp_path / "export").mkdir()
    write(source, "safetensors", folder)
    found = Export.read(folder)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        expected = network(images)
    assert torch.equal(found.logits(images), expected)
    fresh = exporting.in_a_fresh_process([folder], {(1, 8, 8): images}, tmp_path)
    assert torch.equal(fresh[str(folder)], expected)
