"""Fashion-MNIST as published: imported by `kdcl data import idx`, and trained for an epoch."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cohorts import Cohort, MakeRecipe
from importing import run

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

#: Where Debian's package dataset-fashion-mnist has the files.
SOURCE = Path("/usr/share/datasets/fashion-mnist")
PREFIXES = {"train": "train", "test": "t10k"}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not SOURCE.is_dir():
        pytest.skip("needs the files of Fashion-MNIST: apt-get install dataset-fashion-mnist")
    folder = tmp_path_factory.mktemp("fashion") / "data"
    result = run("idx", SOURCE, folder, "--classes", "fashion-mnist")
    assert result.exit_code == 0, result.output
    return folder


def published(split: str, what: str, header: int) -> np.ndarray:
    with gzip.open(SOURCE / f"{PREFIXES[split]}-{what}-ubyte.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_every_image_and_label(imported: Path, split: str, count: int) -> None:
    found = ArrowDataset(str(imported / f"{split}.arrow"))
    pixels_ND = published(split, "images-idx3", 16).reshape(-1, 784)
    assert len(found) == len(pixels_ND) == count
    assert found.labels.tolist() == published(split, "labels-idx1", 8).tolist()
    assert np.bincount(found.labels).tolist() == [count // 10] * 10
    sums_N = pixels_ND.sum(1, dtype=np.int64)
    assert [int(found.pixels(i).sum(dtype=np.int64)) for i in range(count)] == sums_N.tolist()
    assert all(found.pixels(i).tobytes() == pixels_ND[i].tobytes() for i in range(0, count, 97))
    train = published("train", "images-idx3", 16) / 255
    assert found.mean == pytest.approx([train.mean()], rel=1e-12)
    assert found.std == pytest.approx([train.std()], rel=1e-9)


def test_an_epoch_on_two_classes(
    imported: Path, make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    """Trousers and sneakers are told apart by anything that learns at all."""
    paths = [f"data.{split}={imported}/{split}.arrow" for split in ("train", "test")]
    recipe = make_recipe(
        *paths, "data.classes=[Trouser, Sneaker]", "epochs=1", "batch_size=512", "students.a.model=mlp"
    )
    run = make_run(recipe)
    cohort = Cohort(run).train()
    assert not cohort.errors
    results = read_record(run.folder)["results"]
    assert min(results[name]["top1"] for name in ("a", "b", "ensemble")) > 0.95
