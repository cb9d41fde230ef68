"""Initial weights: files of wrapped networks and of checkpoints, and files that do not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdcl_dist import models
from kdcl_dist.errors import ModelError
from kdcl_dist.models.pretrained import load_weights
from kdcl_dist.models.transfer import head_of


class Net(nn.Module):
    """Its part `module` has the name that wrappers use."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.fc = nn.Linear(2, 3)


def load(folder: Path, content: Any, **options: Any) -> Net:
    torch.save(content, folder / "w.pt")
    net = Net()
    load_weights(net, str(folder / "w.pt"), **options)
    return net


def assert_loaded(net: Net, state: dict[str, torch.Tensor], besides: str = "nothing") -> None:
    found = net.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state if not name.startswith(besides))


@given(
    st.lists(st.sampled_from(["module.", "_orig_mod."]), max_size=3),
    st.lists(st.sampled_from(["state_dict", "model", "model_state_dict"]), max_size=2),
    st.booleans(),
)
def test_wrapped_weights_are_those_of_the_network(
    tmp_path_factory: pytest.TempPathFactory, prefixes: list[str], entries: list[str], fresh: bool
) -> None:
    state = Net().state_dict()
    content: dict[str, Any] = {"".join(prefixes) + name: value for name, value in state.items()}
    for entry in entries:
        content = {"epoch": 3, entry: content}
    net = load(tmp_path_factory.mktemp("w"), content, fresh="fc" if fresh else None)
    assert_loaded(net, state, besides="fc." if fresh else "nothing")


def test_weights_of_pytorchs_own_wrappers(tmp_path: Path) -> None:
    net = Net()
    for wrapped in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(net))):
        assert_loaded(load(tmp_path, wrapped.state_dict()), net.state_dict())
    partly = Net()
    partly.fc = torch.compile(partly.fc)  # type: ignore[assignment]
    assert "fc._orig_mod.weight" in partly.state_dict()
    state = {name.replace("_orig_mod.", ""): value for name, value in partly.state_dict().items()}
    assert_loaded(load(tmp_path, partly.state_dict()), state)


def test_a_head_of_its_own_needs_none_in_the_file(tmp_path: Path) -> None:
    state = Net().state_dict()
    body = {f"module.{name}": value for name, value in state.items() if not name.startswith("fc.")}
    assert_loaded(load(tmp_path, body, fresh="fc"), state, besides="fc.")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_error_names_one_of_each_side(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in Net().state_dict().items()}
    other = {name.replace("fc.", "head."): value for name, value in state.items()}
    with pytest.raises(ModelError) as caught:
        load(tmp_path, other)
    message = str(caught.value)
    assert "do not fit Net: it is without " in message
    assert f"; it has the unknown {prefix}" in message
    assert message.count("\n") == 0


def test_names_that_two_weights_would_share_stay(tmp_path: Path) -> None:
    state = Net().state_dict()
    twice = state | {f"_orig_mod.{name}": value for name, value in state.items()}
    with pytest.raises(ModelError, match=r"it has the unknown _orig_mod\.module\.0\.weight and 8 more"):
        load(tmp_path, twice)


@pytest.mark.parametrize("content", [[1], {"model": [1]}, {1: torch.zeros(1)}, {"state_dict": {}}])
def test_what_is_no_state_dict(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ModelError, match=r"w\.pt"):
        load(tmp_path, content)


def test_a_file_of_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state, path = Net().state_dict(), tmp_path / "w.safetensors"
    old = {**state, "fc.weight": torch.zeros(1000, 2), "fc.bias": torch.zeros(1000)}
    safetensors.save_file({f"module.{name}": value for name, value in old.items()}, path)
    net = Net()
    load_weights(net, str(path), fresh="fc")
    assert_loaded(net, state, besides="fc.")
    with pytest.raises(ModelError, match="do not fit Net"):
        load_weights(Net(), str(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelError, match=r"not a file of .* \(SafetensorError\)"):
        load_weights(Net(), str(path))


def test_safetensors_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModelError, match=r"safetensors is not installed: pip install 'kdcl_dist\[export\]'"):
        load_weights(Net(), str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:shufflenet_v2_x0_5"])
def test_a_checkpoint_of_a_library_with_another_head(name: str, tmp_path: Path) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    old, new = models.build(name, 1000, 3), models.build(name, 5, 3)
    torch.save({"state_dict": old.state_dict()}, tmp_path / "w.pth")
    head = head_of(new, name, 5)
    load_weights(new, str(tmp_path / "w.pth"), fresh=head)
    found = new.state_dict()
    assert all(torch.equal(found[key], value) for key, value in old.state_dict().items() if head not in key)
