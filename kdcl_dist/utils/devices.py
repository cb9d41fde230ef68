"""The devices of this process on which PyTorch can compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kdcl_dist.errors import UserError, one_line
from kdcl_dist.utils.gpu_names import gpu_name

__all__ = ["choose_device", "describe_device", "needs_memory", "to_device", "usable_gpus"]


def usable_gpus() -> int:
    """The number of GPUs that PyTorch can use, within CUDA_VISIBLE_DEVICES; no GPU is initialised.

    A GPU whose driver is too old for PyTorch counts for nothing, although the driver lists it.
    """
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def choose_device(name: str) -> torch.device:
    """A device by name: "auto" is a GPU if there is one, else the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device cuda: this machine has no GPU that PyTorch {torch.__version__} can use; "
            "use --device auto or cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@contextmanager
def needs_memory() -> Iterator[None]:
    """Work that a GPU with too little free memory ends as a mistake: others may use the GPU.

    Raises:
        UserError: the GPU has too little free memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little free memory; use --device cpu ({one_line(error)})"
        ) from error


def describe_device(device: torch.device) -> str:
    """A device in words: "cpu", or the GPU's name and, in brackets, which of its host's GPUs it is."""
    if device.type != "cuda":
        return device.type
    return f"{torch.cuda.get_device_name(device)} ({gpu_name(device.index or 0)})"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; the host does not wait for the device.

    A copy from memory that is not pinned would wait until the GPU has finished its work.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
