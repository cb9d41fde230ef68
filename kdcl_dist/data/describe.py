"""A data set in a few lines, for `kdcl data inspect`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdcl_dist.data.dataset import ArrowDataset, ArrowSamples
from kdcl_dist.utils.text import NAME, shown

__all__ = ["describe"]

#: Numbers of a mean or a deviation in one line.
SHOWN = 8


def describe(dataset: ArrowDataset | ArrowSamples) -> list[tuple[str, str]]:
    """Names and values of the lines that describe a data set."""
    info = dataset.info
    counts = np.bincount(dataset.labels, minlength=len(info.classes))
    more = ", ..." if len(info.classes) > 10 else ""
    names = ", ".join(shown(name, NAME) for name in info.classes[:10]) + more
    size = sum(file.stat().st_size for file in dataset.files)
    return [
        ("path", f"{dataset.path} (files: {len(dataset.files)}, {size:,} bytes)"),
        ("samples", f"{len(dataset):,}"),
        ("classes", f"{len(info.classes)}: {names}"),
        ("samples a class", f"{counts.min():,} to {counts.max():,}"),
        *(_of_images(dataset) if isinstance(dataset, ArrowDataset) else _of_tensors(dataset)),
        ("fingerprint", dataset.fingerprint),
        ("source", info.source),
        ("license", info.license),
    ]


def _of_images(dataset: ArrowDataset) -> list[tuple[str, str]]:
    info = dataset.info
    image = "x".join(str(side) for side in info.shape) + " raw uint8" if info.shape else "JPEG or PNG"
    return [
        ("images", f"{image}, channels: {info.channels}"),
        ("mean", _numbers(info.mean)),
        ("std", _numbers(info.std)),
    ]


def _of_tensors(dataset: ArrowSamples) -> list[tuple[str, str]]:
    """The kind of a sample, and a line for each of its tensors."""
    lines: list[tuple[str, str]] = [("sample", dataset.info.kind)]
    for column in dataset.info.columns:
        name, text = shown(column.name, NAME), str(column).removeprefix(f"{column.name}: ")
        if column.name in dataset.mean:
            text += f", mean {_numbers(dataset.mean[column.name])}, std {_numbers(dataset.std[column.name])}"
        lines.append((f"  {name}", text))
    return lines


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:SHOWN]) + (", ..." if len(values) > SHOWN else "")
