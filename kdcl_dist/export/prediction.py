"""Using an export: the most probable classes of image files.

Shapes: B samples, C channels or classes, H W image.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcl_dist import models
from kdcl_dist.config.model import Model, library_of
from kdcl_dist.config.stored_imports import check_stored_imports
from kdcl_dist.data.decode import MAX_FILE_BYTES, decode
from kdcl_dist.data.loader import normalise
from kdcl_dist.data.training_data import test_views
from kdcl_dist.errors import DataError, ExportError, RecipeError, UserError, one_line
from kdcl_dist.export.ensemble import build_ensemble
from kdcl_dist.export.formats import FORMATS, Network, read_network, require
from kdcl_dist.export.preprocessing import Description, Kind, digest, read_description
from kdcl_dist.utils.devices import choose_device, needs_memory
from kdcl_dist.utils.files import read_regular
from kdcl_dist.utils.hidden import is_hidden

__all__ = ["Export", "RankedClass", "images_in"]

SUFFIXES = (".jpeg", ".jpg", ".png")
#: Images in a batch, and the numbers in all of them: fewer images that are large.
BATCH, BATCH_NUMBERS = 64, 50_000_000


class RankedClass(NamedTuple):
    """One class of an image with its probability from 0 to 1; rank 1 is the most probable class."""

    image: str
    rank: int
    name: str
    probability: float


@dataclass(frozen=True)
class Export:
    """An export in memory."""

    folder: Path
    description: Description
    network: Network
    device: torch.device

    @classmethod
    def read(cls, folder: Path, allow_imports: Collection[str] = (), device: str = "auto") -> Export:
        """Read an export of any format.

        Args:
            folder: the export.
            allow_imports: modules outside this package that the export may import.
            device: "cpu", "cuda", or "auto" for a GPU if there is one and the format can use it.

        Raises:
            UserError: there is no such device.
            ImportRefused: the description names a module that is not allowed.
            ExportError: the folder is no export, is damaged, or needs a library that is not installed.
            ModelError: a user's network cannot be built here.
        """
        description = read_description(folder)
        kind, path = description.kind, folder / description.weights
        names = description.import_strings(builds_network=not FORMATS[kind].program)
        check_stored_imports(names, str(folder), allow_imports)
        require(kind)
        try:
            found = digest(path)
        except (OSError, ValueError) as error:
            raise ExportError(f"{path}: cannot be read: {one_line(error)}; export it again") from None
        if found != description.sha256:
            raise ExportError(f"{path}: damaged: it is not the file that was exported; export it again")
        chosen = _device_for(kind, device)
        network = read_network(kind, path, lambda: _built(description, path), chosen)
        return cls(folder, description, network, chosen)

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """The logits (B, C) of preprocessed images.

        Raises:
            UserError: the GPU has too little free memory.
            ExportError: the network fails.
        """
        try:
            with torch.no_grad(), needs_memory():
                return self.network(images_BCHW.to(self.device)).cpu()
        except UserError:
            raise
        except Exception as error:  # a user's network, or a runtime, can raise anything
            shape = tuple(images_BCHW.shape)
            raise ExportError(
                f"{self.folder}: fails on images of shape {shape}: {one_line(error)}"
            ) from error

    def predict(self, paths: Sequence[Path], top: int) -> Iterator[RankedClass | DataError]:
        """The most probable classes of each image, in order; an error in place of an unusable image.

        Args:
            paths: the images.
            top: largest number of classes for each image.

        Raises:
            ExportError: the network takes no image files, or it fails.
        """
        if self.description.colours == "own":
            channels = self.description.input_shape[0]
            raise ExportError(f"{self.folder}: takes images of {channels} channels, which no image file has")
        seen = self.views(paths)
        size = max(1, min(BATCH, BATCH_NUMBERS // math.prod(self.description.input_shape)))
        for start in range(0, len(paths), size):
            chunk = list(islice(seen, size))
            views = [view for view in chunk if isinstance(view, Tensor)]
            rows = iter(self.logits(self.normalised(torch.stack(views))) if views else ())
            for path, view in zip(paths[start:], chunk, strict=False):
                if isinstance(view, DataError):
                    yield view
                else:
                    yield from self._ranked(path, next(rows), top)

    def normalised(self, views_BCHW: Tensor) -> Tensor:
        """Views of `views` as the network takes them: normalised."""
        return normalise(views_BCHW, self.description.mean, self.description.std)

    def views(self, paths: Sequence[Path]) -> Iterator[Tensor | DataError]:
        """The test view of each image, (C, H, W), or an error where the image cannot be used."""
        wanted = self.description.input_shape
        files = _Files(paths, self.description)
        try:
            views = test_views(files, self.description.test_view, self.description.seed)
        except RecipeError as error:
            raise ExportError(f"{self.folder}: test_view: {error.message}; export it again") from error
        for index, path in enumerate(paths):
            try:
                view = views[0, index]
            except DataError as error:
                yield DataError(f"{path}: {error.message}")
                continue
            if tuple(view.shape) == wanted:
                yield view
                continue
            sizes = ["x".join(map(str, shape)) for shape in (view.shape, wanted)]
            yield DataError(
                f"{path}: {sizes[0]} after the test view, but the network takes {sizes[1]}: resize it, or "
                "give the recipe a data.test_view that does"
            )

    def _ranked(self, path: Path, logits_C: Tensor, top: int) -> Iterator[RankedClass]:
        probabilities, classes = torch.sort(F.softmax(logits_C.double(), 0), descending=True, stable=True)
        for rank, (probability, label) in enumerate(
            zip(probabilities.tolist(), classes.tolist(), strict=True), 1
        ):
            if rank > top:
                return
            yield RankedClass(str(path), rank, self.description.classes[label], probability)


def _device_for(kind: Kind, device: str) -> torch.device:
    """The device of an export's network; the ONNX runtime of the extra `export` computes on the CPU."""
    if kind == "onnx" and device != "cpu":
        if device == "cuda":
            raise ExportError("--device cuda: format onnx is computed on the CPU; use --device auto or cpu")
        device = "cpu"
    return choose_device(device)


def _built(description: Description, weights: Path) -> nn.Module:
    """The plain network.

    Raises:
        ExportError: a network would be larger than its file of weights.
        ModelError: a user's network cannot be built here.
    """
    classes, channels, students = len(description.classes), description.input_shape[0], description.students
    model = description.model
    if library_of(Model.of(model).name) == "hf":  # config.json beside the weights describes it
        model = f"hf:{weights.parent}"
    build: Callable[[], nn.Module] = (
        partial(build_ensemble, students, classes, channels)
        if students
        else partial(models.build, model, classes, channels)
    )
    if not any(Model.of(each).import_string for each in (students.values() if students else [model])):
        with torch.device("meta"):  # it has shapes, and takes no memory
            needed = sum(value.nbytes for value in build().state_dict().values())
        if needed > weights.stat().st_size:
            raise ExportError(
                f"{weights}: cannot be read: {description.model} with {len(description.classes):,} classes "
                f"has {needed:,} bytes of weights, more than this file; export it again"
            )
    return build()


class _Files:
    """Image files as a data set without labels."""

    def __init__(self, paths: Sequence[Path], description: Description) -> None:
        self.paths, self.classes = paths, description.classes
        self.mean, self.std = description.mean, description.std
        self.channels = description.input_shape[0]
        self.labels = np.zeros(len(paths), np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Tensor:
        """One image, uint8 (C, H, W)."""
        try:
            pixels_HWC = decode(read_regular(self.paths[index], MAX_FILE_BYTES), self.channels)
        except (OSError, ValueError) as error:
            text = str(error) if isinstance(error, ValueError) else one_line(error)
            raise DataError(f"unreadable: {text}") from error
        return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()


def images_in(paths: Sequence[Path]) -> list[Path]:
    """All images of the given paths: files as given, and the images of folders at any depth, by name.

    Raises:
        DataError: a path does not exist or is no regular file, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        try:
            if not path.is_dir():
                if not stat.S_ISREG(path.stat().st_mode):
                    raise DataError(f"{path}: not a regular file")
                found.append(path)
                continue
            inside = sorted(
                each
                for each in path.rglob("*")
                if each.suffix.lower() in SUFFIXES
                and each.is_file()
                and not is_hidden(each.relative_to(path))
            )
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {one_line(error)}") from None
        if not inside:
            raise DataError(f"{path}: the folder holds no image ({', '.join(SUFFIXES)})")
        found += inside
    return found
