"""Views of samples: their random numbers, fast paths and errors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from kdcl_dist.data import sampling
from kdcl_dist.data.dataset import ArrowDataset, Info
from kdcl_dist.data.loader import batches
from kdcl_dist.data.views import Transforms, Views
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.errors import DataError, RecipeError

SETTINGS = settings(max_examples=50, derandomize=True)


RANDOM = [
    {"name": "RandomAffine", "degrees": 20, "translate": [0.2, 0.2]},
    {"name": "RandomCrop", "size": 8, "padding": 2},
    {"name": "RandomHorizontalFlip"},
    {"name": "RandomErasing", "p": 0.5},
    {"name": "ColorJitter", "brightness": 0.5},
    {"name": "RandAugment"},
    {"name": "RandomResizedCrop", "size": [8, 8], "antialias": True},
]


@pytest.fixture
def images(tmp_path: Path) -> ArrowDataset:
    return ArrowDataset(str(write_images(tmp_path / "i.arrow", 30)))


@pytest.mark.parametrize("item", RANDOM, ids=lambda item: str(item["name"]))
def test_a_view_belongs_to_its_sample(item: dict, images: ArrowDataset) -> None:
    views = Views(images, Transforms([item]), seed=1)
    one = [views[0, i] for i in range(20)]
    torch.rand(7)
    again = [views[0, i] for i in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    other = Views(images, Transforms([item]), seed=2)
    assert any(not torch.equal(a, other[0, i]) for i, a in enumerate(one))
    assert any(not torch.equal(a, views[1, i]) for i, a in enumerate(one))


PADDINGS = st.sampled_from([None, 0, 3, [1, 2], [0, 1, 2, 3]])


@SETTINGS
@given(
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    padding=PADDINGS,
    crops=st.booleans(),
    flip=st.sampled_from([None, 0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**40),
)
def test_crops_of_whole_batches_are_torchvisions(
    size: tuple[int, int],
    padding: object,
    crops: bool,
    flip: float | None,
    seed: int,
    crop_data: ArrowDataset,
) -> None:
    """The same transforms, called one by one by torchvision on each image, are the reference."""
    calls = [v2.RandomCrop(size, padding=padding)] if crops else []
    calls += [v2.RandomHorizontalFlip(flip)] if flip is not None else []
    items = [{"name": "RandomCrop", "size": list(size), "padding": padding}] if crops else []
    items += [{"name": "RandomHorizontalFlip", "p": flip}] if flip is not None else []
    ids = np.array([3, 0, 2, 4, 3])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    found = Views(crop_data, Transforms(items), seed).batch(1, ids)
    assert torch.equal(torch.get_rng_state(), state), "what others draw is left alone"
    for row, i in enumerate(ids.tolist()):
        torch.manual_seed(sampling.view_seed(seed, 1, i))
        image = crop_data.image(i)
        for call in calls:
            image = call(image)
        assert torch.equal(found[row], image)


@pytest.fixture(scope="module")
def crop_data(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    """Five images of 3 x 8 x 9 in two files, so that one lies behind the other's end."""
    folder = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    info = Info(("x",), "raw", 3, (3, 8, 9), (0.5,) * 3, (0.5,) * 3)
    for name, count in (("a", 3), ("b", 2)):
        images = rng.integers(1, 256, (count, 3, 8, 9), dtype=np.uint8)
        write_dataset(folder / f"{name}.arrow", ((0, image.tobytes()) for image in images), info)
    return ArrowDataset(str(folder))


@pytest.mark.parametrize(
    "item",
    [
        {"name": "RandomCrop", "size": 4, "fill": 7, "padding": 2},
        {"name": "RandomCrop", "size": 4, "padding": 2, "padding_mode": "reflect"},
        {"name": "RandomCrop", "size": 30, "padding": 2, "pad_if_needed": True},
        {"name": "RandomVerticalFlip"},
    ],
)
def test_other_transforms_go_image_by_image(item: dict, crop_data: ArrowDataset) -> None:
    views = Views(crop_data, Transforms([item]), seed=1)
    ids = np.arange(5)
    assert torch.equal(views.batch(2, ids), torch.stack([views[2, i] for i in range(5)]))


@pytest.mark.parametrize(
    "items",
    [
        [{"name": "RandomResizedCrop", "size": 24}, {"name": "RandomPhotometricDistort"}],
        [{"name": "Resize", "size": [20, 20]}, {"name": "CenterCrop", "size": 16}],
        [{"name": "Resize", "size": [60, 80]}, {"name": "ColorJitter", "contrast": 0.5}],
    ],
)
def test_decoded_images_give_the_same_views_in_either_layout(items: list[dict], tmp_path: Path) -> None:
    """Torchvision's transforms of the same pixels, plane by plane in memory, are the reference."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(12):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(buffer, "JPEG")
        rows.append((0, buffer.getvalue()))
    info = Info(("x",), "encoded", 3, None, (0.5,) * 3, (0.5,) * 3)
    write_dataset(tmp_path / "e.arrow", rows, info)
    dataset = ArrowDataset(str(tmp_path / "e.arrow"))
    found = Views(dataset, Transforms(items), seed=4).batch(0, np.arange(12))
    calls = [getattr(v2, item["name"])(**{k: v for k, v in item.items() if k != "name"}) for item in items]
    for i, (_, data) in enumerate(rows):
        planes = np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1))
        torch.manual_seed(sampling.view_seed(4, 0, i))
        image = torch.from_numpy(planes)
        for call in calls:
            image = call(image)
        assert torch.equal(found[i], image)


def test_foreign_transforms_are_seeded_too(
    images: ArrowDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_view.py").write_text(
        "import random, numpy as np\n"
        "def make(scale):\n"
        "    return lambda image: image.float() * 0 + scale * (random.random() + np.random.rand())\n"
        "def bad(): return lambda image: 1 / 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    views = Views(images, Transforms([{"name": "own_view:make", "scale": 2}]), seed=1)
    assert torch.equal(views[0, 3], views[0, 3])
    assert not torch.equal(views[0, 3], views[0, 4])
    failing = Views(images, Transforms([{"name": "own_view:bad"}]), seed=1)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"sample 2 .*ZeroDivisionError") as caught:
            list(batches(failing, [(0, np.array([2]))], workers=workers, timeout_s=60))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"name": "NoSuch"}, "transform 0: 'NoSuch' is neither"),
        ({"name": "functional"}, "is neither"),
        ({"name": "RandomCrop"}, "RandomCrop with"),
        ({"name": "RandomCrop", "size": 8, "colour": 1}, "colour"),
        ({"name": "no_module:x"}, "No module"),
    ],
)
def test_transforms_that_cannot_be_built(item: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Transforms([item])


@pytest.mark.parametrize("rows", [30, 2500])  # one record batch, and several
def test_images_without_transforms_are_those_that_are_stored(rows: int, tmp_path: Path) -> None:
    images = ArrowDataset(str(write_images(tmp_path / "i.arrow", rows)))
    views = Views(images, Transforms([]), seed=1)
    ids_B = np.array([rows - 1, 0, 7, rows // 2, 7])
    found = views.batch(0, ids_B)
    assert torch.equal(found, torch.stack([images.image(i) for i in ids_B.tolist()]))
    assert views.batch(0, ids_B[:0]).shape == (0, 1, 8, 8)
    found.zero_()  # a copy
    assert images.image(7).any()
