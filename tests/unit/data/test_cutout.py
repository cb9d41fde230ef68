"""Cutout against a slow scalar reference, and the statistics of where its square lies."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcl_dist.data.cutout import Cutout
from kdcl_dist.data.dataset import ArrowDataset, Info
from kdcl_dist.data.loader import normalise
from kdcl_dist.data.views import Transforms, Views
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.errors import RecipeError

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def slow(normalised_CHW: Tensor, size: int, row: int, column: int) -> Tensor:
    """As the paper has it: zeros in a normalised image, here pixel by pixel."""
    out_CHW = normalised_CHW.clone()
    for y in range(out_CHW.shape[1]):
        for x in range(out_CHW.shape[2]):
            if all(-(size // 2) <= d < size - size // 2 for d in (y - row, x - column)):
                out_CHW[:, y, x] = 0.0
    return out_CHW


@pytest.mark.parametrize("size", [1, 2, 3, 8, 16, 100])
@pytest.mark.parametrize("floating", [False, True])
def test_equals_the_reference_bit_for_bit(size: int, floating: bool) -> None:
    torch.manual_seed(size)
    for height, width in ((32, 32), (5, 9), (1, 1)):
        image_CHW = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        given_CHW = image_CHW / 255 if floating else image_CHW.clone()
        torch.manual_seed(seed := size + height)
        found_CHW = normalise(Cutout(MEAN, size)(given_CHW)[None], MEAN, STD)[0]
        torch.manual_seed(seed)
        row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
        plain_CHW = normalise(image_CHW[None], MEAN, STD)[0]
        assert torch.equal(found_CHW, slow(plain_CHW, size, row, column))
        assert torch.equal(given_CHW, image_CHW / 255 if floating else image_CHW), "the input was changed"


def test_the_centre_is_uniform_and_the_square_hangs_over_the_border() -> None:
    """For size 1 the square is its centre: chi-squared over all pixels. For larger ones: its mean area."""
    torch.manual_seed(0)
    side, draws = 8, 12_800
    image_CHW = torch.ones(1, side, side)
    counts_HW = sum(1 - Cutout((0.0,), 1)(image_CHW)[0] for _ in range(draws))
    assert isinstance(counts_HW, Tensor)
    expected = draws / side**2
    chi_squared = float(((counts_HW - expected) ** 2 / expected).sum())
    assert chi_squared < 103.4  # 63 degrees of freedom, one in a thousand lies above

    size, draws = 4, 4_000
    covered = sum(float((1 - Cutout((0.0,), size)(image_CHW)).sum()) for _ in range(draws)) / draws
    # Along one axis a centre c covers min(8, c + 2) - max(0, c - 2) pixels; both axes are independent.
    mean_side = np.mean([min(side, c + 2) - max(0, c - 2) for c in range(side)])
    assert covered == pytest.approx(mean_side**2, rel=0.03)


def test_a_recipe_gives_the_size_and_the_data_set_the_mean(tmp_path: Path) -> None:
    info = Info(("a",), "raw", 3, (3, 8, 8), MEAN, STD)
    rng = np.random.default_rng(0)
    write_dataset(tmp_path / "d.arrow", [(0, rng.bytes(192)) for _ in range(4)], info)
    dataset = ArrowDataset(str(tmp_path / "d.arrow"))
    items = [{"name": "RandomCrop", "size": 8, "padding": 1}, {"name": "Cutout", "size": 4}]
    views = Views(dataset, Transforms(items, dataset.mean), seed=1)
    image_CHW = normalise(views[0, 2][None], MEAN, STD)[0]
    assert 4 <= int((image_CHW == 0).all(dim=0).sum()) <= 16
    assert torch.equal(pickle.loads(pickle.dumps(views))[0, 2], views[0, 2])
    assert not torch.equal(views[1, 2], views[0, 2])


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "4"])
def test_impossible_sizes(size: object) -> None:
    with pytest.raises(RecipeError, match=r"transform 0: Cutout .* size must be a whole number"):
        Transforms([{"name": "Cutout", "size": size}], MEAN)
    with pytest.raises(RecipeError, match="transform 0: Cutout"):
        Transforms([{"name": "Cutout"}], MEAN)
