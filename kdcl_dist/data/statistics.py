"""Mean and deviation of floating-point tensors, by feature of their last axis.

Shapes: N rows, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcl_dist.data.layout import Layout
from kdcl_dist.data.samples import Sample, like, named
from kdcl_dist.errors import DataError

__all__ = ["Moments", "Scale", "scale_of"]


class Moments:
    """Mean and deviation of rows that come in parts (Chan, Golub and LeVeque, 1979, eq. 2.1).

    Args:
        features: F.
    """

    def __init__(self, features: int) -> None:
        self.count, self.mean_F, self._squares_F = 0, np.zeros(features), np.zeros(features)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Add the rows of an array whose size is a multiple of F."""
        values_NF = values.reshape(-1, len(self.mean_F)).astype(np.float64)
        if not len(values_NF):
            return
        mean_F, total = values_NF.mean(0), self.count + len(values_NF)
        shift_F = mean_F - self.mean_F
        self._squares_F += ((values_NF - mean_F) ** 2).sum(0)
        self._squares_F += shift_F**2 * (self.count * len(values_NF) / total)
        self.mean_F += shift_F * (len(values_NF) / total)
        self.count = total

    def pooled(self) -> Moments:
        """The moments of the numbers of all features together, as of one feature."""
        pooled = Moments(1)
        pooled.count = self.count * len(self.mean_F)
        pooled.mean_F = self.mean_F.mean(keepdims=True)
        spread = self.count * ((self.mean_F - pooled.mean_F) ** 2).sum()
        pooled._squares_F = np.array([self._squares_F.sum() + spread])
        return pooled

    @property
    def std_F(self) -> npt.NDArray[np.float64]:
        """The deviation of all rows, not of a sample of them."""
        std_F: npt.NDArray[np.float64] = np.sqrt(self._squares_F / max(1, self.count))
        return std_F


class Scale:
    """Gives floating-point tensors a mean of 0 and a deviation of 1, as scikit-learn's StandardScaler.

    Args:
        mean, std: F numbers of each tensor, by its name. A feature that is constant is divided by 1.
    """

    def __init__(self, mean: Mapping[str, Sequence[float]], std: Mapping[str, Sequence[float]]) -> None:
        self.mean = {name: torch.tensor(values, dtype=torch.float64) for name, values in mean.items()}
        tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in std.items()}
        self.std = {name: torch.where(std_F == 0, 1, std_F) for name, std_F in tensors.items()}

    def __call__(self, sample: Sample) -> Sample:
        """The sample with its floating-point tensors scaled, in their own types."""
        return like(sample, {name: self._scaled(name, tensor) for name, tensor in named(sample).items()})

    def numbers(self) -> dict[str, dict[str, list[float]]]:
        """The arguments of the class, by their names."""
        both = {"mean": self.mean, "std": self.std}
        return {key: {name: each.tolist() for name, each in found.items()} for key, found in both.items()}

    def _scaled(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.mean:
            return tensor
        return ((tensor - self.mean[name]) / self.std[name]).to(tensor.dtype).view_as(tensor)


def scale_of(dataset: Any, layout: Layout) -> Scale:
    """The scale by a data set's `mean` and `std`; found in one pass over its samples where it has none.

    Args:
        dataset: a `SampleDataset`, the training samples.
        layout: theirs.

    Raises:
        DataError: `mean` or `std` are not numbers for each feature of the floating-point tensors, or there
            are no such tensors.
    """
    features = {column.name: column.features for column in layout.columns if column.is_floating}
    if not features:
        raise DataError(f"samples have no floating-point numbers to normalise ({layout}): set it to false")
    mean, std = getattr(dataset, "mean", None), getattr(dataset, "std", None)
    if not mean or not std:
        return _found(dataset, features)
    for found in (mean, std):
        if {name: len(values) for name, values in found.items()} != features:
            raise DataError(
                f"mean and std of the data set must have a number for each feature of {', '.join(features)} "
                f"(got {', '.join(f'{name}: {len(values)}' for name, values in found.items())}, expected "
                f"{', '.join(f'{name}: {count}' for name, count in features.items())})"
            )
    return Scale(mean, std)


def _found(dataset: Any, features: Mapping[str, int]) -> Scale:
    moments = {name: Moments(count) for name, count in features.items()}
    for index in range(len(dataset)):
        tensors = named(dataset.sample(index))
        for name, each in moments.items():
            each.add(tensors[name].double().numpy())
    return Scale(
        {name: each.mean_F.tolist() for name, each in moments.items()},
        {name: each.std_F.tolist() for name, each in moments.items()},
    )
