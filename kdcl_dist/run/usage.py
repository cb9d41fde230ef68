"""The memory that each process of a dry run used, in files of its run folder: `usage/NAME.json`."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kdcl_dist.run.storage import Folder

if TYPE_CHECKING:
    import torch

__all__ = ["Usage", "read_usage", "write_usage"]

#: Bytes of the largest file that is read.
MAX_BYTES = 10_000


@dataclass(frozen=True)
class Usage:
    """The peaks of a process.

    Attributes:
        host: its address.
        device: of its network.
        memory: bytes of resident memory, libraries included and loader processes not.
        gpu_memory: bytes that PyTorch allocated on the GPU; None on the CPU.
    """

    host: str
    device: str
    memory: int
    gpu_memory: int | None


def write_usage(run: Folder, name: str, host: str, device: torch.device) -> None:
    """Write the peaks of this process.

    Raises:
        StorageError: the storage refuses.
    """
    import torch  # not at the top: the command that reads needs none

    on_gpu = device.type == "cuda"
    gpu_memory = torch.cuda.max_memory_allocated(device) if on_gpu else None
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.write(f"usage/{name}.json", json.dumps(asdict(Usage(host, str(device), memory, gpu_memory))).encode())


def read_usage(run: Folder, names: Iterable[str]) -> dict[str, Usage]:
    """The peaks of the processes of some names.

    Raises:
        FileNotFoundError: one has written none.
    """
    return {name: Usage(**json.loads(run.read(f"usage/{name}.json", MAX_BYTES))) for name in names}
