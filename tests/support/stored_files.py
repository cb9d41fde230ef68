"""Files of stored logits for the tests: random ones, others for each view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.logits_writer import LogitsWriter
from kdcl_dist.data.stored_logits import TEST_VIEW, LogitsInfo


def write_logits(
    path: Path, train: str, views: int, *, ids: Sequence[int] | None = None, held: bool = True, **changes: Any
) -> str:
    """A file of a data set's samples, or of some; without the test view if not `held`."""
    data = ArrowDataset(train)
    info = replace(LogitsInfo(data.classes, data.fingerprint, len(data), views=views), **changes)
    generator = torch.Generator().manual_seed(info.views)
    rows = np.arange(len(data)) if ids is None else np.asarray(ids)
    with LogitsWriter(path, info) as writer:
        for view in range(TEST_VIEW if held else 0, info.views):
            writer.add(rows, view, 3 * torch.randn(len(rows), len(info.classes), generator=generator))
    return str(path)
