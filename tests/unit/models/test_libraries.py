"""Networks with arguments: of factories, of torchvision, timm and transformers; and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdcl_dist import models
from kdcl_dist.config.model import Model
from kdcl_dist.errors import ModelError

VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}


def build(name: str, channels: int | None = 3, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return models.build(Model.model_validate({"name": name, **arguments}), 5, channels)


def refusal(name: str, channels: int | None = 3, **arguments: Any) -> str:
    with pytest.raises(ModelError) as caught:
        build(name, channels, **arguments)
    assert "\n" not in caught.value.message
    return caught.value.message


def assert_alike(ours: nn.Module, theirs: nn.Module) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_factory_gets_its_arguments() -> None:
    assert len(build("nets:Deep", depth=3).blocks) == 3  # type: ignore[arg-type]
    assert next(build("mlp", 1, hidden=7).parameters()).shape[0] == 7


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nets:Deep", {"dept": 3}, "has no argument 'dept': did you mean 'depth'? it takes depth, width"),
        ("nets:Deep", {}, "missing 1 required positional argument: 'depth'"),
        ("nets:Deep", {"depth": 1, "num_classes": 2}, "the data gives 'num_classes', leave it out"),
        ("nets:Plain", {"depth": 1}, "has no argument 'depth': it takes no arguments"),
        ("resnet20", {"depth": 8}, "model 'resnet20' has no argument 'depth': it takes no arguments"),
        ("resnet18", {"weights": "DEFAULT"}, "has no argument 'weights'"),
        ("mlp", {"hiden": 3}, "did you mean 'hidden'?"),
        ("torchvision:resnet18", {"depth": 8}, "unexpected keyword argument 'depth'"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "students.NAME.weights"),
        ("torchvision:vit_b_61", {}, "did you mean 'vit_b_16'?"),
        ("torchvision:fcn_resnet50", {}, "torchvision.models has no classifier 'fcn_resnet50'"),
        ("timm:resnet10t", {"depth": 8}, "model 'timm:resnet10t(depth=8)' cannot be built: TypeError:"),
        ("timm:resnet10t", {"pretrained": True}, "students.NAME.weights"),
        ("timm:resnet10t", {"checkpoint_path": "x.pth"}, "students.NAME.weights"),
        ("timm:resnet10t", {"in_chans": 1}, "the data gives 'in_chans'"),
        ("timm:resnet_18", {}, "timm has no network 'resnet_18', did you mean 'resnet18'?"),
        ("timm:hf-hub:timm/resnet18", {}, "timm has no network"),
        ("timm:local-dir:.", {}, "timm has no network"),
    ],
)
def test_wrong_arguments_and_names_are_one_line(name: str, arguments: dict[str, Any], words: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    assert words in refusal(name, **arguments)


def test_torchvisions_network_is_its_own() -> None:
    from torchvision.models import shufflenet_v2_x0_5, vit_b_16

    ours = build("torchvision:shufflenet_v2_x0_5")
    torch.manual_seed(0)
    assert_alike(ours, shufflenet_v2_x0_5(num_classes=5))
    with torch.device("meta"):
        small = models.build(Model.model_validate({"name": "torchvision:vit_b_16", "image_size": 32}), 5, 3)
        assert small.state_dict().keys() == vit_b_16(num_classes=5, image_size=32).state_dict().keys()
    grey = build("torchvision:shufflenet_v2_x0_5", 1)
    assert grey.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 5)


def test_timms_network_is_its_own() -> None:
    timm = pytest.importorskip("timm")
    arguments = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2}
    ours = build("timm:vit_tiny_patch16_224.augreg_in21k", 1, **arguments)
    torch.manual_seed(0)
    assert_alike(ours, timm.create_model("vit_tiny_patch16_224", num_classes=5, in_chans=1, **arguments))
    assert ours(torch.rand(2, 1, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_package_that_is_missing_is_asked_for(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    message = refusal({"timm": "timm:resnet18", "transformers": "hf:vit"}[library])
    assert message.endswith(f"{library} is not installed: pip install 'kdcl_dist[{library}]'")


def test_a_network_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    config = transformers.ViTConfig(**VIT, num_channels=1, num_labels=5)
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForImageClassification.from_config(config)
    for ours in (build("hf:vit", 1, **VIT), build(f"hf:{tmp_path}", 1)):
        assert_alike(ours, theirs)
        images = torch.rand(2, 1, 8, 8)
        assert torch.equal(ours.eval()(images), theirs.eval()(images).logits)
    deeper = build(f"hf:{tmp_path}", 3, num_hidden_layers=3)
    assert deeper(torch.rand(2, 3, 8, 8)).shape == (2, 5)


BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def test_a_text_classifier_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    config = transformers.BertConfig(**BERT, vocab_size=50, num_labels=5)
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config)
    ids, mask = torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    for ours in (build("hf:bert", None, **BERT, vocab_size=50), build(f"hf:{tmp_path}", None)):
        assert_alike(ours, theirs)
        logits = ours.eval()(input_ids=ids, attention_mask=mask)
        assert torch.equal(logits, theirs.eval()(input_ids=ids, attention_mask=mask).logits)
    assert "no text classifier of transformers: 'vit'" in refusal("hf:vit", channels=None)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("hf:vit", {"hidden": 3}, "the config of 'vit' has no 'hidden'"),
        ("hf:vit", {"attn_implementation": "a/kernel"}, "no library loads weights or code"),
        ("hf:vit", {"num_labels": 3}, "the data gives 'num_labels'"),
        ("hf:google/vit-base-patch16-224", {}, "no folder with a config.json"),
        ("hf:timm_wrapper", {}, "no image classifier of transformers: 'timm_wrapper'"),
        ("hf:bert", {}, "no image classifier of transformers: 'bert'"),
    ],
)
def test_wrong_networks_of_transformers(name: str, arguments: dict[str, Any], words: str) -> None:
    pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    assert words in refusal(name, **arguments)


def test_a_config_cannot_name_code(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the folder')")
    config = {
        "model_type": "vit",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M"},
        "_attn_implementation": "someone/kernel",
        "dtype": "float16",
        **VIT,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert next(build(f"hf:{tmp_path}").parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "argument", ["pretrained", "pretrained_cfg", "weights_backbone", "_name_or_path", "quantization_config"]
)
def test_no_argument_loads_weights_or_code(argument: str) -> None:
    for name in ("timm:resnet18", "torchvision:resnet18", "hf:vit"):
        assert "no library loads weights or code" in refusal(name, **{argument: "x"})
