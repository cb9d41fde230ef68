"""A look at the first samples that are no images: what would fail within a run is refused before it.

Shapes: N samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kdcl_dist.data.layout import Layout
from kdcl_dist.data.samples import Sample, named
from kdcl_dist.errors import DataError, of_user_code

__all__ = ["check_finite", "check_samples"]

#: Samples that are looked at, evenly spaced.
COUNT = 8


def check_samples(where: str, dataset: Any) -> Layout:
    """The layout of a few samples of a data set.

    Args:
        where: the data set, for the message.
        dataset: a `SampleDataset`.

    Raises:
        DataError: a sample cannot be made, is no tensor or tuple or dict of tensors, has NaN or infinite
            numbers, or differs from the first one in names, types, or another axis than the first.
    """
    found: Layout | None = None
    for index in np.unique(np.linspace(0, len(dataset) - 1, COUNT).astype(int)).tolist():
        with of_user_code(DataError, f"{where}: sample({index}) fails"):
            sample = dataset.sample(index)
        try:
            layout = Layout.of(sample)
        except ValueError as error:
            raise DataError(f"{where}: sample({index}) gives {error}") from error
        try:
            found = layout if found is None else found.joined(layout)
        except ValueError as error:
            raise DataError(
                f"{where}: sample(0) and sample({index}) differ: {error}: all must have the same names, "
                "types and shapes, of which the first axis alone may differ"
            ) from error
        check_finite(f"{where}: sample({index})", sample)
    assert found is not None, "a data set has a sample"
    return found


def check_finite(where: str, sample: Sample, student: str | None = None) -> None:
    """Raise `DataError`, about a student, if a tensor of a sample or a batch has NaN or infinite numbers."""
    for name, tensor in named(sample).items():
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(
                f"{where} has NaN or infinite numbers in {name!r}: fill them or leave it out", student=student
            )
