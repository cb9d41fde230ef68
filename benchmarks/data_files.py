"""Made-up image files: JPEGs of ImageNet's size, and a data set in CIFAR's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import CIFAR10

from benchmarks.cifar_files import write_cifar10
from kdcl_dist.data.importers.cifar import import_cifar
from kdcl_dist.data.importers.imagefolder import ImageFolder
from kdcl_dist.data.importers.images import import_images

__all__ = ["TorchvisionCIFAR10", "cifar", "jpegs"]

#: Height and width of most of ImageNet's images; with this JPEG quality a file has about 100 kB, as there.
SIDES = 375, 500
QUALITY = 95


class TorchvisionCIFAR10(CIFAR10):  # type: ignore[misc]
    """torchvision's data set without the check for the official files."""

    def _check_integrity(self) -> bool:
        return True

    def _load_meta(self) -> None:
        self.classes = [str(number) for number in range(10)]


def jpegs(folder: Path, count: int) -> tuple[Path, str]:
    """A folder for torchvision's ImageFolder, and the path of the same images imported by kdcl."""
    rng = np.random.default_rng(0)
    for number in range(count):
        for split in ("train", "val") if number < 2 else ("train",):
            path = folder / "images" / split / f"class{number % 2}" / f"{number:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_picture(rng)).save(path, quality=QUALITY)
    source = folder / "images"
    done = import_images(ImageFolder(source), folder / "imported", workers=0, on_progress=lambda *_: None)
    return source / "train", str(done.paths["train"])


def cifar(folder: Path, rows: int) -> tuple[Path, str]:
    """A root for torchvision's CIFAR10 with 5 x `rows` training images, and their path imported by kdcl."""
    inner = write_cifar10(folder, rows)
    return folder, str(import_cifar("cifar10", inner, folder / "cifar", checksums=False)[0])


def _picture(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Noise of all scales whose amplitude falls with the frequency, as in photographs; uint8 (H, W, 3)."""
    picture = torch.zeros(1, 3, *SIDES)
    for octave in range(1, 8):
        coarse = torch.from_numpy(rng.normal(0, 0.75**octave, (1, 3, 2**octave, 2**octave)))
        picture += F.interpolate(coarse.float(), size=SIDES, mode="bilinear")
    picture += torch.from_numpy(rng.normal(0, 0.1, (1, 3, *SIDES)))
    pixels: npt.NDArray[Any] = picture[0].permute(1, 2, 0).numpy()
    return (128 + 60 * pixels).clip(0, 255).astype(np.uint8)
