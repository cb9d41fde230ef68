"""Networks that record the memory of their process at each training step, for `memory`."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdcl_dist.models import build

__all__ = ["FOLDER", "cnn_large", "cnn_medium", "cnn_small", "resnet18"]

#: Environment variable with the folder of the records: a file for each network, with bytes.
FOLDER = "KDCL_WEIGHTS"


def _weighed(model: str, num_classes: int, in_channels: int) -> nn.Module:
    network = build(model, num_classes, in_channels)
    network.register_forward_hook(partial(_watch, Path(os.environ[FOLDER], f"{model}.json")))
    return network


def _watch(note: Path, _network: nn.Module, _images: Any, logits_BC: Tensor) -> None:
    if logits_BC.requires_grad:
        logits_BC.register_hook(lambda _gradient: _weigh(note))  # type: ignore[no-untyped-call]


def _weigh(note: Path) -> None:
    """Record the process's peak of resident memory, and the most private memory so far.

    Linux counts a page as resident in each process that maps it. A page of several processes is private in
    none.
    """
    peak = _kilobytes("/proc/self/status", "VmHWM")
    private = _kilobytes("/proc/self/smaps_rollup", "Private_Clean", "Private_Dirty")
    before = json.loads(note.read_text())["private"] if note.exists() else 0
    note.write_text(json.dumps({"peak": peak << 10, "private": max(before, private << 10)}))


def _kilobytes(path: str, *fields: str) -> int:
    text = Path(path).read_text()
    return sum(int(re.findall(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)[0]) for field in fields)


cnn_small = partial(_weighed, "cnn_small")
cnn_medium = partial(_weighed, "cnn_medium")
cnn_large = partial(_weighed, "cnn_large")
resnet18 = partial(_weighed, "resnet18")
