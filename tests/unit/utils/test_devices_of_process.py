"""The devices of a process: by name, and in words."""

from __future__ import annotations

import pytest
import torch

from kdcl_dist.errors import UserError
from kdcl_dist.utils import devices
from kdcl_dist.utils.gpu_names import gpu_name


@pytest.mark.parametrize("there", [False, True])
def test_a_device_by_name(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)  # of a driver that may be too old
    assert devices.choose_device("auto").type == ("cuda" if there else "cpu")
    assert devices.choose_device("cpu").type == "cpu"
    assert devices.choose_device("cuda:1") == torch.device("cuda", 1)
    assert devices.usable_gpus() == (3 if there else 0)
    if there:
        assert devices.choose_device("cuda").type == "cuda"
    else:
        with pytest.raises(
            UserError, match=r"--device cuda: this machine has no GPU .* --device auto or cpu"
        ):
            devices.choose_device("cuda")


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["GPU 0", "GPU 1"]),
        ("", ["GPU 0"]),
        ("5, 2", ["GPU 5", "GPU 2", "GPU 2"]),
        ("GPU-3f,MIG-7a", ["GPU-3f", "MIG-7a"]),
    ],
)
def test_a_gpu_has_its_number_of_the_host(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu_name(index) for index in range(len(names))] == names


def test_a_device_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert devices.describe_device(torch.device("cpu")) == "cpu"
    assert devices.describe_device(torch.device("cuda")) == "NVIDIA H200 (GPU 3)"
    assert devices.describe_device(torch.device("cuda", 1)) == "NVIDIA H200 (GPU 1)"
