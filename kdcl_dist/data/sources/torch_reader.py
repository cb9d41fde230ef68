"""Reading a torch map-style data set of `(x, y)`, whose code may raise anything."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import IterableDataset

from kdcl_dist.data.samples import Sample
from kdcl_dist.data.sources.sample_kind import as_sample
from kdcl_dist.errors import DataError, of_user_code

__all__ = ["class_names", "is_map_style", "length", "read", "targets"]

#: Data sets within one another, as `Subset` and `random_split` make them.
WITHIN = 8


def is_map_style(found: Any) -> bool:
    """Whether an object has samples by number."""
    is_text = isinstance(found, (str, bytes, dict))
    return (
        hasattr(found, "__getitem__") and hasattr(found, "__len__") and not (is_text or _is_iterable(found))
    )


def length(where: str, dataset: Any) -> int:
    """The number of samples; `DataError` if there are none."""
    with of_user_code(DataError, f"{where}: len() fails"):
        count = len(dataset)
    if not count:
        raise DataError(f"{where}: the data set has no samples")
    return count


def read(where: str, dataset: Any, index: int, channels: int | None = None) -> tuple[Sample, int]:
    """One sample and its label; arguments as `as_sample`.

    Raises:
        DataError: the data set raises an exception, or gives no `(x, y)` of a kind that can be used.
    """
    with of_user_code(DataError, f"{where}: sample {index} fails"):
        pair = dataset[index]
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise DataError(f"{where}: sample {index} is a {type(pair).__name__}, not a pair (x, y)")
    label = _whole(pair[1])
    if label is None or label < 0:
        raise DataError(
            f"{where}: sample {index} has the label {str(pair[1])[:40]!r} ({type(pair[1]).__name__}): a "
            "label is a whole number from 0"
        )
    with of_user_code(DataError, f"{where}: sample {index}"):
        return as_sample(pair[0], channels), label


def targets(dataset: Any, count: int) -> npt.NDArray[np.int64] | None:
    """The labels that a data set has as `targets`, as torchvision's do; None if it has none that hold."""
    found = getattr(dataset, "targets", None)
    if found is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        labels_N = np.asarray(found)
    except Exception:  # of a user's class
        return None
    fits = labels_N.shape == (count,) and labels_N.dtype.kind in "iu" and labels_N.min() >= 0
    return labels_N.astype(np.int64) if fits else None


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """The class names that a data set, or the one within it, has as `classes`; None if it has none."""
    for _ in range(WITHIN):
        names = getattr(dataset, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str) and len(names):
            texts = tuple(map(str, names))
            return texts if len(set(texts)) == len(texts) else None
        if (dataset := getattr(dataset, "dataset", None)) is None:
            return None
    return None


def _is_iterable(found: Any) -> bool:
    return isinstance(found, IterableDataset)


def _whole(y: Any) -> int | None:
    if isinstance(y, (Tensor, np.ndarray)):
        y = y.item() if int(np.prod(y.shape)) == 1 else None
    try:
        return operator.index(y)
    except TypeError:
        return None
