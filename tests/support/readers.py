"""What the readers of some pages have before they begin: their own data, networks and runs, small."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pytest
from importing import encoded, write_idx

from benchmarks.cifar_files import write_cifar10, write_cifar100
from kdcl_dist.data.importers import cifar


class Reader(Protocol):
    """Follows a page in the working directory."""

    patch: pytest.MonkeyPatch

    def follow(self, text: str, language: str = "sh") -> None:
        """Run a command, or a block of Python."""


Prepare = Callable[[Reader], None]

PETS = """
epochs: 1
batch_size: 4
data:
  train: data/pets/train
  test: data/pets/val
  augment: [{name: RandomResizedCrop, size: 16}, {name: RandomHorizontalFlip}]
  test_view: [{name: Resize, size: [20, 20]}, {name: CenterCrop, size: 16}]
students:
  - {name: large, model: cnn_small}
  - {name: mine, model: my_nets:tiny}
"""
TAUGHT = """
students:
  - {name: teacher, logits: teacher.arrow}
  - {name: a, model: cnn_small}
  - {name: b, model: cnn_small, data: {share: [0, 0.5], sees: all}}
"""
MY_NETS = """
import torch

def tiny(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, num_classes))
"""
NAMES_OF_THE_README = """
import torch

class Small(torch.nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))

    def forward(self, images):
        return self.layers(images)

Large = Small
images, labels = torch.rand(160, 1, 8, 8), torch.arange(160) % 4
train_set = torch.utils.data.TensorDataset(images, labels)
test_set = torch.utils.data.TensorDataset(images[:40], labels[:40])
batch = torch.rand(5, 1, 8, 8)
"""
NAMES_OF_THE_DATA = """
import pandas

frame = pandas.DataFrame({"width": range(1000), "height": range(1000), "species": ["cat", "dog"] * 500})
texts, languages, encode = ["guten Tag", "hello"], ["de", "en"], lambda text: list(text.encode())
"""


def copies_of_runs(*names: str) -> Prepare:
    """`runs/mine` under other names."""

    def prepare(reader: Reader) -> None:
        for name in names:
            shutil.copytree("runs/mine", f"runs/{name}")

    return prepare


def copies_of_digits(*names: str) -> Prepare:
    """The recipe of the digits under other names."""

    def prepare(reader: Reader) -> None:
        for name in names:
            shutil.copy("examples/digits.yaml", name)

    return prepare


def images(*folders: str) -> None:
    """Folders of images of two classes."""
    for folder in folders:
        for name in ("cat", "dog"):
            target = Path(folder, name)
            target.mkdir(parents=True)
            for number in range(6):
                (target / f"{number}.jpg").write_bytes(encoded(seed=number))


def pets(reader: Reader) -> None:
    images("pets/train", "pets/val")
    Path("pets.yaml").write_text(PETS)
    Path("my_nets.py").write_text(MY_NETS)
    reader.follow("kdcl data import imagefolder pets data/pets")


def taught_by_files(reader: Reader) -> None:
    Path("late.yaml").write_text("{name: late, model: cnn_small}\n")
    Path("taught.yaml").write_text(PETS.partition("students:")[0] + TAUGHT)
    reader.follow("kdcl train pets.yaml --name last-month --set students.mine=null")
    reader.follow(NAMES_OF_THE_README, "python")


def pictures(reader: Reader) -> None:
    Path("pictures").mkdir()
    for name in ("picture.png", "pictures/a.png", "pictures/b.png"):
        Path(name).write_bytes(encoded("PNG", "L", (8, 8)))
    shutil.copy("examples/data/digits-test.arrow", "test.arrow")


def big(reader: Reader) -> None:
    """Of docs/stored-logits.md: an export, an array of logits, and a recipe with fixed views."""
    reader.follow("kdcl export runs/big --student large --to exports/big")
    np.save("logits.npy", np.zeros((1438, 10), np.float32))
    text = Path("examples/digits.yaml").read_text()
    text = text.replace("data:\n", "data:\n  views: 2\n").replace("{method:", "{invariant: false, method:")
    Path("views.yaml").write_text(text)


def sources(reader: Reader) -> None:
    """Of docs/data.md: a source for each importer, and what its code reads."""
    images("flowers", "imagenet/train", "imagenet/val")
    for folder in ("raw", "fashion/FashionMNIST/raw"):
        for split, rows in (("train", 30), ("t10k", 20)):
            write_idx(Path(folder, f"{split}-images-idx3-ubyte"), np.zeros((rows, 28, 28), np.uint8) + rows)
            write_idx(Path(folder, f"{split}-labels-idx1-ubyte"), np.arange(rows) % 10)
    official(reader, "cifar10", write_cifar10(Path("made"), 12))
    official(reader, "cifar100", write_cifar100(Path("made"), 200, 100))
    rows = [{"image": encoded("PNG", seed=number), "label": number % 2} for number in range(12)]
    Path("hub/data").mkdir(parents=True)
    for name in ("hub/data/train.parquet", "hub/data/test.parquet", "all.parquet"):
        pd.DataFrame(rows).to_parquet(name)
    pd.DataFrame({"width": np.arange(20.0), "label": ["a", "b"] * 10}).to_csv("rows.csv", index=False)
    Path("shards").mkdir()
    for split in ("train", "test"):
        with tarfile.open(f"shards/{split}-0000.tar", "w") as archive:
            for number in range(6):
                for suffix, content in (("png", encoded("PNG", seed=number)), ("cls", b"%d" % (number % 2))):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    Path("names.txt").write_text("cat\ndog\n")
    for name in ("tom.jpg", "rex.jpg"):
        Path(name).write_bytes(encoded())
    reader.follow(NAMES_OF_THE_DATA, "python")


def official(reader: Reader, kind: str, folder: Path) -> None:
    """Pack a folder as the archive of the page, and take it for the official one."""
    path = Path(f"{kind.replace('cifar', 'cifar-')}-python.tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    layout = cifar.LAYOUTS[kind]
    sums = {name: md5((folder / name).read_bytes()).hexdigest() for name in layout.md5}
    whole = md5(path.read_bytes()).hexdigest()
    reader.patch.setitem(cifar.LAYOUTS, kind, replace(layout, md5=sums, archive_md5=whole))


#: By page, what its reader has.
PREPARE: dict[str, tuple[Prepare, ...]] = {
    "README.md": (pets, taught_by_files),
    "docs/compare.md": (copies_of_digits("digits.yaml"),),
    "docs/data.md": (sources,),
    "docs/export.md": (copies_of_digits("mine.yaml"), pictures),
    "docs/report.md": (copies_of_runs("linear-0", "linear-1", "none-0"),),
    "docs/running.md": (pets,),
    "docs/serving.md": (copies_of_runs("last-month"),),
    "docs/stored-logits.md": (copies_of_runs("big"), copies_of_digits("recipe.yaml"), big),
}
