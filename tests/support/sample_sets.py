"""Data sets of samples that are no images, on disk and as objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kdcl_dist.data.sample_writer import SampleWriter
from kdcl_dist.data.samples import Sample


def sentence(index: int) -> dict[str, torch.Tensor]:
    """Token ids and their mask, of a length and with numbers that depend on the index."""
    length = 1 + index % 5
    return {
        "tokens": torch.arange(length) * 7 % 11 + index % 3,
        "mask": torch.ones(length, dtype=torch.bool),
        "weight": torch.tensor([0.5 * index, 3.0]),
    }


def write_sentences(path: Path, count: int = 24) -> Path:
    """A data set of `sentence`, whose labels are 0, 1, 2, 0, ..."""
    with SampleWriter(path, ["a", "b", "c"], source="made up", license="none") as writer:
        for index in range(count):
            writer.add(index % 3, sentence(index))
    return path


class Sentences:
    """The same samples as a data set of a user's own."""

    classes = ("a", "b", "c")

    def __init__(self, count: int = 24) -> None:
        self.labels = np.arange(count) % 3

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int) -> Sample:
        return sentence(index)


def more() -> Sentences:
    """As many as a test's training set has."""
    return Sentences(48)
