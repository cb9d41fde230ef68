"""A data set in a few lines, for `kdcl data describe` and `kdcl data inspect`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdcl_dist.data.dataset import (
    ArrowDataset,
    ArrowSamples,
    Dataset,
    ImageDataset,
    SampleDataset,
    fingerprint,
)
from kdcl_dist.data.decode import decoders
from kdcl_dist.data.first_samples import check_samples
from kdcl_dist.utils.text import NAME, shown

__all__ = ["describe"]

#: Numbers of a mean or a deviation in one line.
SHOWN = 8


def describe(dataset: Dataset) -> list[tuple[str, str]]:
    """Names and values of the lines that describe a data set."""
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    more = ", ..." if len(dataset.classes) > 10 else ""
    names = ", ".join(shown(str(name), NAME) for name in dataset.classes[:10]) + more
    return [
        *_of_files(dataset),
        ("samples", f"{len(dataset):,}"),
        ("classes", f"{len(dataset.classes)}: {names}"),
        ("samples a class", f"{counts.min():,} to {counts.max():,}"),
        *(_of_images(dataset) if isinstance(dataset, ImageDataset) else _of_tensors(dataset)),
        ("fingerprint", fingerprint(dataset)),
        *_of_origin(dataset),
    ]


def _of_files(dataset: Dataset) -> list[tuple[str, str]]:
    if not isinstance(dataset, (ArrowDataset, ArrowSamples)):
        return []
    size = sum(file.stat().st_size for file in dataset.files)
    return [("path", f"{dataset.path} (files: {len(dataset.files)}, {size:,} bytes)")]


def _of_origin(dataset: Dataset) -> list[tuple[str, str]]:
    if not isinstance(dataset, (ArrowDataset, ArrowSamples)):
        return []
    return [("source", dataset.info.source), ("license", dataset.info.license)]


def _of_images(dataset: ImageDataset) -> list[tuple[str, str]]:
    decoder = []
    if not isinstance(dataset, ArrowDataset):
        image = f"the first is {_shape(dataset.image(0).shape)} {dataset.image(0).dtype}"
    elif dataset.info.shape:
        image = f"{_shape(dataset.info.shape)} raw uint8"
    else:
        image, decoder = "JPEG or PNG", [("decoder", decoders())]
    return [
        ("images", f"{image}, channels: {dataset.channels}"),
        ("mean", _numbers(dataset.mean)),
        ("std", _numbers(dataset.std)),
        *decoder,
    ]


def _of_tensors(dataset: SampleDataset) -> list[tuple[str, str]]:
    """The kind of a sample, and a line for each of its tensors."""
    layout = dataset.info.layout if isinstance(dataset, ArrowSamples) else check_samples("data set", dataset)
    mean, std = getattr(dataset, "mean", {}), getattr(dataset, "std", {})
    lines: list[tuple[str, str]] = [("sample", layout.kind)]
    for column in layout.columns:
        name, text = shown(column.name, NAME), str(column).removeprefix(f"{column.name}: ")
        if column.name in mean:
            text += f", mean {_numbers(mean[column.name])}, std {_numbers(std[column.name])}"
        lines.append((f"  {name}", text))
    return lines


def _shape(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:SHOWN]) + (", ..." if len(values) > SHOWN else "")
