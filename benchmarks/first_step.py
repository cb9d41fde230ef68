"""Networks that record the begin of their first training step's backward pass, for `startup`."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdcl_dist.models import build

__all__ = ["FOLDER", "cnn_medium", "cnn_small"]

#: Environment variable with the folder of the records, a file for each process.
FOLDER = "KDCL_FIRST_STEPS"
#: A backward pass with fewer samples belongs to the dry run before training.
LEAST = 8


def _recording(model: str, num_classes: int, in_channels: int) -> nn.Module:
    network = build(model, num_classes, in_channels)
    network.register_forward_hook(_watch)
    return network


def _watch(_network: nn.Module, _images: Any, logits_BC: Tensor) -> None:
    if logits_BC.requires_grad and len(logits_BC) >= LEAST:
        logits_BC.register_hook(_record)  # type: ignore[no-untyped-call]


def _record(_gradient: Tensor) -> None:
    path = Path(os.environ[FOLDER], str(os.getpid()))
    if not path.exists():
        path.write_text(str(time.time()))


cnn_medium = partial(_recording, "cnn_medium")
cnn_small = partial(_recording, "cnn_small")
