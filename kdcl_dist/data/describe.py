"""A data set in a few lines, for `kdcl data inspect`."""

from __future__ import annotations

import numpy as np

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.utils.text import NAME, shown

__all__ = ["describe"]


def describe(dataset: ArrowDataset) -> list[tuple[str, str]]:
    """Names and values of the lines that describe a data set."""
    info = dataset.info
    counts = np.bincount(dataset.labels, minlength=len(info.classes))
    more = ", ..." if len(info.classes) > 10 else ""
    names = ", ".join(shown(name, NAME) for name in info.classes[:10]) + more
    size = sum(file.stat().st_size for file in dataset.files)
    image = "x".join(str(side) for side in info.shape) + " raw uint8" if info.shape else "JPEG or PNG"
    return [
        ("path", f"{dataset.path} (files: {len(dataset.files)}, {size:,} bytes)"),
        ("samples", f"{len(dataset):,}"),
        ("classes", f"{len(info.classes)}: {names}"),
        ("samples a class", f"{counts.min():,} to {counts.max():,}"),
        ("images", f"{image}, channels: {info.channels}"),
        ("mean", ", ".join(f"{value:g}" for value in info.mean)),
        ("std", ", ".join(f"{value:g}" for value in info.std)),
        ("fingerprint", dataset.fingerprint),
        ("source", info.source),
        ("license", info.license),
    ]
