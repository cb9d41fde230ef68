"""Batches from this process and from loader processes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import write_images
from PIL import Image

from kdcl_dist.data import sampling
from kdcl_dist.data.dataset import ArrowDataset, Info
from kdcl_dist.data.loader import batches, normalise
from kdcl_dist.data.views import Transforms, Views
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.errors import DataError

RANDOM = [
    {"name": "RandomAffine", "degrees": 20, "translate": [0.2, 0.2]},
    {"name": "RandomCrop", "size": 8, "padding": 2},
    {"name": "RandomHorizontalFlip"},
    {"name": "RandomErasing", "p": 0.5},
]


@pytest.fixture
def images(tmp_path: Path) -> ArrowDataset:
    return ArrowDataset(str(write_images(tmp_path / "i.arrow", 30)))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_batch(workers: int, images: ArrowDataset) -> None:
    views = Views(images, Transforms(RANDOM), seed=3)
    schedule = [(epoch, ids) for epoch in range(2) for ids in sampling.batches_of(np.arange(30), 8)]
    inline = list(batches(views, schedule))
    loaded = list(batches(views, schedule, workers=workers, timeout_s=60))
    assert len(inline) == len(loaded) == 8
    for left, right in zip(inline, loaded, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_images_of_a_batch_are_of_one_size(tmp_path: Path) -> None:
    info = Info(("x",), "encoded", 1, None, (0.5,), (0.5,))
    rows = []
    for side in (8, 9):
        buffer = io.BytesIO()
        Image.new("L", (side, side)).save(buffer, "PNG")
        rows.append((0, buffer.getvalue()))
    write_dataset(tmp_path / "e.arrow", rows, info)
    views = Views(ArrowDataset(str(tmp_path / "e.arrow")), Transforms([]), seed=0)
    with pytest.raises(DataError, match="samples 0 and 1"):
        list(batches(views, [(0, np.array([0, 1]))]))


def test_normalisation() -> None:
    image = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert normalise(image, (0.5,), (0.25,)).tolist() == [[[[-2, 2]]]]
    assert normalise(image.double() / 255, (0.5,), (0.25,)).tolist() == [[[[-2, 2]]]]
