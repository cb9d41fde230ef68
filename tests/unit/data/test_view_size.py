"""Transforms that would make huge images: refused before the image exists."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cohorts import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.view_size import MAX_PIXELS
from kdcl_dist.data.views import Transforms, Views
from kdcl_dist.errors import DataError, RecipeError

SETTINGS = settings(max_examples=60, derandomize=True)
#: Bytes that a refusal may take: a tenth of the smallest image that it refuses would be more.
ALLOWED = 50_000_000

#: Each makes an image of gigabytes from one of 8x8 or 300x200 pixels.
HUGE = [
    [{"name": "Pad", "padding": 9_999}],
    [{"name": "Pad", "padding": [9_999, 0, 9_999, 9_000], "padding_mode": "edge"}],
    [{"name": "CenterCrop", "size": 9_999}],
    [{"name": "RandomCrop", "size": 9_999, "pad_if_needed": True}],
    [{"name": "RandomCrop", "size": 8, "padding": 9_999, "padding_mode": "edge"}],
    [{"name": "Resize", "size": 9_999}],
    [{"name": "Resize", "size": [9_999, 9_999], "interpolation": 3}],
    [{"name": "RandomResize", "min_size": 9_000, "max_size": 9_999}],
    [{"name": "RandomShortestSize", "min_size": [9_999]}],
    [{"name": "ScaleJitter", "target_size": [1_000, 1_000], "scale_range": [99, 100]}],
    [{"name": "RandomZoomOut", "side_range": [9_998, 9_999], "p": 1.0}],
    [{"name": "Pad", "padding": 1_500}] * 3,
    [{"name": "ToPILImage"}, {"name": "Resize", "size": 9_999, "interpolation": 1}, {"name": "PILToTensor"}],
    [{"name": "ToPILImage"}, {"name": "Pad", "padding": 9_999}, {"name": "PILToTensor"}],
]


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail where the highest use of memory so far is exceeded by more than `ALLOWED`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < ALLOWED


@pytest.mark.parametrize("items", HUGE, ids=lambda items: "-".join(item["name"] for item in items))
@pytest.mark.parametrize("size", [(8, 8), (200, 300)])
def test_a_huge_view_is_refused_before_it_exists(items: list[dict[str, Any]], size: tuple[int, int]) -> None:
    transforms, image_CHW = Transforms(items), torch.zeros(3, *size, dtype=torch.uint8)
    with little_memory(), pytest.raises(ValueError, match="but none may have more than 4096 x 4096"):
        transforms(image_CHW)


def test_a_narrow_image_that_grows_with_its_shorter_side() -> None:
    image_CHW = torch.zeros(3, 2, 9_000, dtype=torch.uint8)
    with little_memory(), pytest.raises(ValueError, match="Resize makes an image of 256 x 1152000 pixels"):
        Transforms([{"name": "Resize", "size": 256}])(image_CHW)


@pytest.mark.parametrize(
    "item",
    [
        {"name": "Pad", "padding": 100_000},
        {"name": "Pad", "padding": [1, 10**30]},
        {"name": "Resize", "size": [8, -20_000]},
        {"name": "RandomResizedCrop", "size": 4_097},
        {"name": "ElasticTransform", "sigma": 10_000.0},
        {"name": "GaussianBlur", "kernel_size": 9_999},
        {"name": "RandAugment", "num_ops": 10**9},
        {"name": "TrivialAugmentWide", "num_magnitude_bins": 10**10},
        {"name": "AugMix", "mixture_width": 10**9},
        {"name": "RandomZoomOut", "side_range": [1.0, float("inf")]},
        {"name": "Pad", "padding": float("nan")},
        {"name": "Pad", "padding": 1, "fill": {"x": 10**9}},
    ],
    ids=lambda item: str(item["name"]),
)
def test_arguments_of_which_no_image_is_made(item: dict[str, Any]) -> None:
    with (
        little_memory(),
        pytest.raises(RecipeError, match="has a number that is not from -") as caught,
    ):
        Transforms([item])
    assert str(caught.value).startswith(f"transform 0: {item['name']} with {{")


def test_the_fast_path_of_crops_refuses_too(tmp_path: Path) -> None:
    images = ArrowDataset(str(write_images(tmp_path / "i.arrow", 2)))
    views = Views(images, Transforms([{"name": "RandomCrop", "size": 9_999, "padding": 9_999}]), 0)
    with little_memory(), pytest.raises(DataError, match="RandomCrop makes an image of") as caught:
        views.batch(0, images.labels[:1] * 0)
    assert "\n" not in str(caught.value)


def test_a_large_image_may_become_smaller_and_stay_large() -> None:
    image_CHW = torch.zeros(1, 4_100, 4_200, dtype=torch.uint8)
    assert image_CHW.numel() > MAX_PIXELS
    for item, shape in (
        ({"name": "Resize", "size": 64}, (1, 64, 65)),
        ({"name": "CenterCrop", "size": 64}, (1, 64, 64)),
        ({"name": "RandomHorizontalFlip"}, (1, 4_100, 4_200)),
        ({"name": "Resize", "size": 4_100}, (1, 4_100, 4_200)),
    ):
        assert tuple(Transforms([item])(image_CHW).shape) == shape
    with pytest.raises(ValueError, match="Pad makes an image of 4102 x 4202 pixels"):
        Transforms([{"name": "Pad", "padding": 1}])(image_CHW)


def test_a_transform_of_the_user_is_held_to_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "large_views.py").write_text(
        "import torch\ndef make():\n    return lambda image: torch.zeros(1, 1, 1).expand(1, 5000, 5000)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="a transform makes an image of 5000 x 5000 pixels"):
        Transforms([{"name": "large_views:make"}])(torch.zeros(1, 8, 8))


ITEMS = st.sampled_from(
    [
        {"name": "RandomCrop", "size": 300, "padding": 40, "pad_if_needed": True},
        {"name": "RandomZoomOut", "side_range": [1.0, 4.0]},
        {"name": "ScaleJitter", "target_size": [200, 200]},
        {"name": "RandomResize", "min_size": 100, "max_size": 400},
        {"name": "RandomShortestSize", "min_size": [100, 200, 300]},
        {"name": "Resize", "size": 224},
        {"name": "Pad", "padding": [1, 2, 3, 4]},
    ]
)


@SETTINGS
@given(items=st.lists(ITEMS, min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_the_check_changes_no_view(items: list[dict[str, Any]], seed: int) -> None:
    image_CHW = torch.randint(0, 256, (3, 200, 300), dtype=torch.uint8)
    transforms = Transforms(items)
    torch.manual_seed(seed)
    expected = image_CHW
    for call in transforms.calls:
        expected = call(expected)
    torch.manual_seed(seed)
    assert torch.equal(transforms(image_CHW), expected)


def test_images_of_pillow_keep_their_filters() -> None:
    items = [{"name": "ToPILImage"}, {"name": "Resize", "size": [90, 80], "interpolation": 1}]
    found = Transforms(items)(torch.zeros(3, 200, 300, dtype=torch.uint8))
    assert isinstance(found, Image.Image)
    assert found.size == (80, 90)
