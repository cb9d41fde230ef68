"""Batches from this process and from loader processes."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import write_images
from PIL import Image

from kdcl_dist.data import loader, sampling
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
        assert all(torch.equal(a, b) for a, b in zip(left[:-1], right[:-1], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_says_how_long_its_making_took(
    workers: int, images: ArrowDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "slow_views.py").write_text(
        "import time\n\ndef slow(): return lambda image: time.sleep(0.01) or image\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    views = Views(images, Transforms([{"name": "slow_views:slow"}]), seed=3)
    (batch,) = batches(views, [(0, np.arange(5))], workers=workers, timeout_s=60)
    assert 0.05 <= batch.load_s < 60


@pytest.mark.parametrize("on_gpu", [False, True])
def test_batches_are_pinned_ahead_where_this_process_uses_a_gpu(
    on_gpu: bool, images: ArrowDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch pins where there is a GPU, and warns where there is none."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_gpu)
    made: list[bool] = []
    monkeypatch.setattr(loader, "DataLoader", lambda *_, pin_memory, **__: made.append(pin_memory) or ())
    assert list(batches(Views(images, Transforms([]), seed=3), [], workers=1)) == []
    assert made == [on_gpu]


class Locked:
    """A data set with an object that no other process can have."""

    classes, channels, mean, std = ("x", "y"), 1, (0.5,), (0.25,)
    labels = np.arange(4) % 2

    def __init__(self) -> None:
        self.cache = {"lock": threading.Lock()}

    def __len__(self) -> int:
        return 4

    def image(self, index: int) -> torch.Tensor:
        """A grey image."""
        return torch.full((1, 2, 2), 128, dtype=torch.uint8)


def test_what_loader_processes_cannot_have_is_named() -> None:
    views, schedule = Views(Locked(), Transforms([]), seed=0), [(0, np.array([0, 1]))]
    assert len(list(batches(views, schedule))) == 1
    words = r"data\.loader_workers: .* Locked\.cache\['lock'\] cannot be pickled \(TypeError: .*: set "
    with pytest.raises(DataError, match=words) as caught:
        list(batches(views, schedule, workers=1))
    assert "\n" not in str(caught.value)


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
