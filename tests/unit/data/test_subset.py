"""Some classes of a data set as a data set of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import write_images

from kdcl_dist.data.dataset import ArrowDataset, fingerprint
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.data.subset import ClassSubset, of_classes
from kdcl_dist.errors import DataError


@pytest.fixture
def whole(tmp_path: Path) -> ArrowDataset:
    """Twelve images whose labels are 0, 1, 2, 3, 0, ..."""
    return ArrowDataset(str(write_images(tmp_path / "d.arrow", 12)))


def test_labels_are_indices_into_the_names(whole: ArrowDataset) -> None:
    found = ClassSubset(whole, ["class 3", "class 1"])
    assert found.classes == ("class 3", "class 1")
    assert found.labels.tolist() == [1, 0] * 3
    assert len(found) == 6
    for row, index in enumerate([1, 3, 5, 7, 9, 11]):
        assert torch.equal(found.image(row), whole.image(index))


def test_mean_and_deviation_are_those_of_the_whole(whole: ArrowDataset) -> None:
    found = ClassSubset(whole, ["class 0"])
    assert (found.mean, found.std, found.channels) == (whole.mean, whole.std, whole.channels)


def test_a_fingerprint_depends_on_data_and_classes(whole: ArrowDataset, tmp_path: Path) -> None:
    other = ArrowDataset(str(write_images(tmp_path / "other.arrow", 12, seed=5)))
    subsets = [
        ClassSubset(whole, ["class 0", "class 1"]),
        ClassSubset(whole, ["class 1", "class 0"]),
        ClassSubset(whole, ["class 0"]),
        ClassSubset(other, ["class 0"]),
    ]
    assert len({fingerprint(subset) for subset in subsets} | {fingerprint(whole)}) == 5
    assert fingerprint(ClassSubset(whole, ["class 0"])) == fingerprint(subsets[2])


def test_unknown_and_empty_classes_are_named(whole: ArrowDataset) -> None:
    with pytest.raises(
        DataError, match=r"data\.classes: x, y is no class of the data set \(it has class 0, "
    ):
        ClassSubset(whole, ["x", "class 1", "y"])
    whole.labels = np.zeros(12, np.int64)
    with pytest.raises(DataError, match="the data set has no samples of class 2"):
        ClassSubset(whole, ["class 2"])


def test_without_names_the_whole_is_opened(tmp_path: Path) -> None:
    path = str(write_images(tmp_path / "d.arrow", 12))
    assert isinstance(of_classes(open_dataset(path), None), ArrowDataset)
    assert len(of_classes(open_dataset(path), ["class 2"])) == 3
