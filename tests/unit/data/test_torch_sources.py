"""Torch map-style data sets as data sets: images and samples, labels, pure views, and what is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, Subset
from torchvision.datasets import FakeData
from torchvision.transforms import functional, v2

from kdcl_dist.config.data import Data
from kdcl_dist.data.dataset import Dataset, ImageDataset, SampleDataset, fingerprint
from kdcl_dist.data.first_samples import check_samples
from kdcl_dist.data.loader import batches
from kdcl_dist.data.sample_views import SampleViews
from kdcl_dist.data.samples import Collate, named
from kdcl_dist.data.sources import torch_facts
from kdcl_dist.data.sources.cache import cache_folder
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.data.sources.torch_set import TorchImages, TorchSamples, open_torch
from kdcl_dist.data.views import Transforms, Views
from kdcl_dist.errors import DataError

COUNT = 40


def third(index: int) -> int:
    """The label of a sample."""
    return index % 3


class Pairs(TorchDataset[Any]):
    """Samples `make(index)` with labels 0, 1, 2, 0, ..."""

    def __init__(self, make: Any, count: int = COUNT, labels: Any = None) -> None:
        self.make, self.count = make, count
        self.labels_of = labels or third

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index), self.labels_of(index)


def noisy(index: int) -> Tensor:
    """Draws from all global generators."""
    return torch.rand(1, 8, 8) * 0.3 + np.random.random() * 0.3 + random.random() * 0.3


def sequence(index: int) -> dict[str, Tensor]:
    """A dict of a random sequence and its mask."""
    return {"ids": torch.randint(1, 9, (1 + index % 4,)), "mask": torch.ones(1 + index % 4)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(dataset: Any, train: Dataset | None = None) -> Any:
    return open_torch("x", dataset, train, lambda text: None)


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda index: Image.new("RGB", (6, 4), (index, 2, 3)), 3),
        (lambda index: Image.new("L", (6, 4), index), 1),
        (lambda index: Image.new("1", (6, 4), index % 2), 1),
        (lambda index: Image.new("RGBA", (6, 4), (index, 2, 3, 4)), 3),
        (lambda index: Image.new("L" if index % 2 else "RGB", (6, 4), 9), 3),
        (lambda index: torch.full((3, 4, 6), index, dtype=torch.uint8), 3),
        (lambda index: torch.full((1, 4, 6), index / 100), 1),
        (lambda index: np.full((1, 4, 6), index / 100, np.float32), 1),
    ],
)
def test_images(make: Any, channels: int) -> None:
    found = opened(Pairs(make))
    assert isinstance(found, ImageDataset)
    assert not isinstance(found, SampleDataset)
    assert found.channels == channels
    assert found.image(3).shape == (channels, 4, 6)
    assert found.labels.tolist() == [index % 3 for index in range(COUNT)]
    assert found.classes == ("0", "1", "2")
    images = torch.stack([found.image(index) for index in range(COUNT)]).double()
    images /= 255 if found.image(0).dtype == torch.uint8 else 1
    assert found.mean == pytest.approx(images.mean((0, 2, 3)).tolist())
    std = images.std((0, 2, 3), correction=0)
    assert found.std == pytest.approx(torch.where(std < 1e-9, 1.0, std).tolist())


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (lambda index: torch.full((4,), float(index)), "tensor of input: float32 (4)"),
        (lambda index: torch.full((1, 4, 6), index - 3.0), "tensor of input: float32 (1, 4, 6)"),
        (lambda index: torch.full((2, 4, 6), 0.5), "tensor of input: float32 (2, 4, 6)"),
        (lambda index: torch.zeros(1, 4, 6, dtype=torch.int64), "tensor of input: int64 (1, 4, 6)"),
        (lambda index: (torch.zeros(index + 1), torch.ones(2)), "tuple of 0: float32 (any), 1: float32 (2)"),
        (sequence, "dict of ids: int64 (any), mask: float32 (any)"),
        (lambda index: index / 2, "tensor of input: float32 ()"),
        (lambda index: [index, np.zeros(3)], "tuple of 0: int64 (), 1: float64 (3)"),
    ],
)
def test_all_else_is_a_sample(make: Any, layout: str) -> None:
    found = opened(Pairs(make))
    assert isinstance(found, SampleDataset)
    assert not isinstance(found, ImageDataset)
    assert str(check_samples("x", found)) == layout


def test_why_samples_are_no_images_is_told() -> None:
    told: list[str] = []
    open_torch("x", Pairs(lambda index: torch.full((1, 4, 6), index - 3.0)), None, told.append)
    assert "40 samples, no images, as a sample has numbers from -3 to -3 (images are PIL images" in told[0]
    assert "3 classes (0, 1, 2); found from all samples in " in told[0]


def test_statistics_of_samples_are_those_of_what_training_sees() -> None:
    found = opened(Pairs(lambda index: {"a": torch.tensor([float(index), 1.0]), "b": torch.tensor([index])}))
    numbers = np.arange(COUNT)
    assert found.mean == {"a": pytest.approx((numbers.mean(), 1))}
    assert found.std == {"a": pytest.approx((numbers.std(), 0))}


def test_statistics_of_signals_of_any_length() -> None:
    signals = [torch.arange(3 + index % 4, dtype=torch.float64) * index for index in range(12)]
    found, numbers = opened(Pairs(lambda index: signals[index], 12)), torch.cat(signals)
    assert found.mean == {"input": pytest.approx((float(numbers.mean()),))}
    assert found.std == {"input": pytest.approx((float(numbers.std(correction=0)),))}


def test_class_names() -> None:
    data = Pairs(sequence)
    data.classes = ["cat", "dog", "cow"]
    train = opened(data)
    assert train.classes == ("cat", "dog", "cow")
    assert opened(Subset(data, [0, 1, 4])).classes == ("cat", "dog", "cow")
    assert opened(Pairs(sequence), train).classes == ("cat", "dog", "cow")
    assert opened(data, opened(Pairs(sequence))).classes == ("0", "1", "2")
    with pytest.raises(DataError, match="the label in row 3 is 3, but there are 3 classes"):
        opened(Pairs(sequence, labels=lambda index: index % 4), train)


def test_the_test_set_has_the_scale_of_the_training_set() -> None:
    train, other = (
        opened(Pairs(lambda i, level=level: torch.full((1, 2, 2), level + i / 99)), None)
        for level in (0, 0.5)
    )
    test = opened(Pairs(lambda i: torch.full((1, 2, 2), 0.5 + i / 99)), train)
    assert (test.mean, test.std) == (train.mean, train.std)
    assert test.mean != other.mean


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("of_images", [True, False])
def test_random_transforms_of_its_own_give_pure_views(of_images: bool, workers: int) -> None:
    found = opened(Pairs(noisy if of_images else sequence))

    def views(seed: int) -> Any:
        none = Transforms([], [0.5])
        return Views(found, none, seed) if of_images else SampleViews(found, none, seed, Collate())

    ids = np.array([3, 1, 2, 7])
    schedule = [(0, ids), (1, ids), (0, ids[::-1].copy())]
    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    first = [named(batch.inputs) for batch in batches(views(1), schedule, workers=workers)]
    random.seed(6), np.random.seed(7), torch.manual_seed(8)
    again = [named(batch.inputs) for batch in batches(views(1), schedule[1:], workers=0)]
    other = [named(batch.inputs) for batch in batches(views(2), schedule, workers=0)]
    for name in first[0]:
        assert torch.equal(first[1][name], again[0][name])
        assert torch.equal(first[2][name].flip(0), first[0][name])
    name = "input" if of_images else "ids"
    assert not torch.equal(first[0][name], first[1][name])
    assert not torch.equal(first[0][name], other[0][name])


def test_draws_of_the_data_set_and_of_a_transform_are_independent() -> None:
    found = opened(Pairs(lambda index: torch.rand(1, 8, 8)))
    seen: list[float] = []

    class Draws(Transforms):
        def __call__(self, image_CHW: Tensor) -> Tensor:
            seen.append(float(torch.rand(())))
            return image_CHW

    image = Views(found, Draws([{"name": "RandomHorizontalFlip"}], [0.5]), 1)[0, 3]
    assert seen[0] != float(image[0, 0, 0])


PROCESS = """
import sys
from kdcl_dist.config.data import Data
from kdcl_dist.data.sources.opening import DataSets
from kdcl_dist.data.dataset import fingerprint
from kdcl_dist.data.views import Transforms, Views
found = DataSets(Data(train="fake:train", test="fake:train")).open("train")
print(fingerprint(found), Views(found, Transforms([], [0.5]), 1)[2, 5].double().sum().item())
"""


def test_torchvision_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake.py").write_text(
        "from torchvision.datasets import FakeData\n"
        "from torchvision.transforms import v2, functional\n"
        "def train():\n"
        "    crop = v2.Compose([v2.RandomCrop(6), v2.ColorJitter(0.5), functional.to_tensor])\n"
        "    return FakeData(30, (3, 8, 8), 5, transform=crop)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    found = []
    for cache in ("one", "one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        command = [sys.executable, "-c", PROCESS]
        found.append(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert len(set(found)) == 1
    assert len(found[0].split()) == 2


def test_by_import_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fakes.py").write_text(
        "from torchvision.datasets import FakeData\n"
        "import torch\n"
        "data = FakeData(20, (3, 8, 8), 4)\n"
        "def make(): return FakeData(20, (3, 8, 8), 4)\n"
        "class Made(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 20\n"
        "    def __getitem__(self, i): return torch.zeros(5), i % 4\n"
        "pairs = [(torch.zeros(5), 0), (torch.ones(5), 1)]\n"
        "def three(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kinds = {"data": TorchImages, "make": TorchImages, "Made": TorchSamples, "pairs": TorchSamples}
    for name, kind in kinds.items():
        assert type(open_dataset(f"fakes:{name}")) is kind
    with pytest.raises(DataError, match="data set 'fakes:three': int lacks __len__"):
        open_dataset("fakes:three")


def test_targets_save_reading_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_facts, "LOOKED_AT", 5)
    monkeypatch.setattr(torch_facts, "PROBES", 2)
    read: set[int] = set()
    data = Pairs(lambda index: read.add(index) or torch.full((1, 2, 2), index / 99))

    def read_of(**attributes: Any) -> set[int]:
        read.clear()
        for each in cache_folder().glob("*"):
            each.unlink()
        vars(data).update(attributes)
        assert opened(data).labels.tolist() == [index % 3 for index in range(COUNT)]
        return read

    assert read_of() == set(range(COUNT))
    targets = [index % 3 for index in range(COUNT)]
    for found in (targets, np.array(targets), torch.tensor(targets)):
        assert read_of(targets=found) == {0, 9, 19, 29, 39}
    assert read_of(target_transform=third) == set(range(COUNT))
    for found in (targets[1:], [0.5] * COUNT, "text", object()):
        assert read_of(targets=found, target_transform=None) == set(range(COUNT))
    data.targets = [1] * COUNT
    cache_folder().rename(cache_folder().with_name("other"))
    with pytest.raises(DataError, match=r"sample 0 has the label 0, but targets\[0\] is 1"):
        opened(data)


def test_what_was_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    data = Pairs(lambda index: torch.full((1, 2, 2), index / 99))
    first = open_torch("x", data, None, told.append)
    with monkeypatch.context() as patch:
        patch.setattr(torch_facts, "_look", None)
        assert fingerprint(open_torch("x", data, None, told.append)) == fingerprint(first)
    assert "known from" in told[1]
    (kept,) = cache_folder().iterdir()
    facts = json.loads(kept.read_text())
    for damage in ("{", json.dumps(facts | {"labels": [0]}), json.dumps(facts | {"std": {}}), json.dumps([])):
        kept.write_text(damage)
        assert fingerprint(opened(data)) == fingerprint(first)
    changed = Pairs(lambda index: torch.full((1, 2, 2), index / 98))
    assert fingerprint(opened(changed)) != fingerprint(first)
    assert len(list(cache_folder().iterdir())) == 1


def test_a_label_that_changes_later_is_noticed() -> None:
    data = Pairs(lambda index: torch.full((1, 2, 2), index / 99))
    found = opened(data)
    data.labels_of = lambda index: 1
    with pytest.raises(DataError, match=r"sample 3 has the label 1, which was 0 before: .* delete .*kdcl"):
        found.image(3)


class Own(Pairs):
    """Draws from a generator of its own."""

    generator = np.random.default_rng()

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([self.generator.random()]), 0


class Stream(IterableDataset[Any]):
    """Has no samples by number."""

    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Own(None), "sample 0 differs when it is read again with the same seeds of torch, numpy and random"),
        (Pairs(lambda index: "text"), "sample 0: ValueError: x is a str, not a PIL image"),
        (Pairs(lambda index: {"a": "text"}), "sample 0: ValueError: 'a' is a str"),
        (Pairs(sequence, 0), "the data set has no samples"),
        (
            Pairs(sequence, labels=lambda index: 0.5),
            r"sample 0 has the label '0.5' \(float\): a label is a whole",
        ),
        (Pairs(sequence, labels=lambda index: "cat"), r"sample 0 has the label 'cat' \(str\)"),
        (Pairs(sequence, labels=lambda index: -1), "sample 0 has the label '-1'"),
        (
            Pairs(sequence, labels=lambda index: torch.tensor([0, 1])),
            r"sample 0 has the label 'tensor\(\[0, 1\]\)'",
        ),
        (Pairs(lambda index: 1 / (index - 39)), r"sample 39 fails: ZeroDivisionError"),
        (
            Pairs(lambda index: torch.zeros(2 if index == 39 else 3, 2)[:, : 1 + index // 39]),
            "differs from those",
        ),
        (
            Pairs(lambda index: torch.tensor([float("nan")])),
            "sample 0 has NaN or infinite numbers in 'input'",
        ),
        (
            Pairs(lambda index: torch.zeros(1 if index else 3, 2, 2)),
            "sample 1: no image of 3 channels, .*: it has 1",
        ),
        ([(1, 2, 3)], r"sample 0 is a tuple, not a pair \(x, y\)"),
        ([{"x": 1, "y": 2}], "sample 0 is a dict, not a pair"),
    ],
)
def test_what_is_refused(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        opened(data)
    assert "\n" not in str(caught.value)
    assert not list(cache_folder().glob("*"))


def test_streams_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "streams.py").write_text(
        "from test_torch_sources import Stream\ndef make(): return Stream()\n"
    )
    monkeypatch.setitem(sys.modules, "test_torch_sources", sys.modules[__name__])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="data set 'streams:make': Stream lacks __len__"):
        open_dataset("streams:make")


def test_the_generators_of_the_caller_stay() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    opened(Pairs(noisy))
    assert torch.equal(torch.rand(1), expected)


def test_labels_may_be_tensors_and_arrays() -> None:
    for make in (torch.tensor, np.int64, lambda label: np.array([label]), bool):
        found = opened(Pairs(sequence, labels=lambda index, make=make: make(index % 2)))
        assert found.labels.tolist() == [index % 2 for index in range(COUNT)]


def test_fake_data_of_torchvision_trains_as_other_images_do() -> None:
    data = FakeData(20, (3, 8, 8), 4, transform=v2.Compose([functional.to_tensor, v2.RandomCrop(6)]))
    views = Views(opened(data), Transforms([{"name": "RandomHorizontalFlip"}], [0.5] * 3), 1)
    (batch,) = batches(views, [(0, np.arange(8))])
    assert batch.inputs.shape == (8, 3, 6, 6)  # type: ignore[union-attr]
    assert torch.equal(views[0, 3], views[0, 3])
    assert Data(train="a", test="b").label is None
