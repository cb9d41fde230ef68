"""Using an export: the most probable classes of image files, or of a data set's samples.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcl_dist import models
from kdcl_dist.config.model import Model, library_of
from kdcl_dist.config.stored_imports import check_stored_imports
from kdcl_dist.data.dataset import Dataset, channels_of
from kdcl_dist.data.samples import Inputs, described, forward, map_tensors
from kdcl_dist.data.sources.opening import open_dataset, open_samples
from kdcl_dist.data.sources.table import SUFFIXES as TABLES
from kdcl_dist.errors import DataError, ExportError, UserError, one_line
from kdcl_dist.export.ensemble import build_ensemble
from kdcl_dist.export.formats import FORMATS, Network, read_network, require
from kdcl_dist.export.inputs import Images, preparation_of
from kdcl_dist.export.preprocessing import Description, Kind, digest, read_description
from kdcl_dist.utils.data_specs import HUGGING_FACE, SHIPPED
from kdcl_dist.utils.devices import choose_device, needs_memory
from kdcl_dist.utils.hidden import is_hidden
from kdcl_dist.utils.import_strings import is_import_string

__all__ = ["Export", "RankedClass", "dataset_in", "images_in"]

SUFFIXES = (".jpeg", ".jpg", ".png")


class RankedClass(NamedTuple):
    """One class of a sample with its probability from 0 to 1; rank 1 is the most probable class.

    A sample is an image file's path, or a row of a data set.
    """

    sample: str
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

    def logits(self, inputs: Inputs) -> Tensor:
        """The logits (B, C) of a preprocessed batch.

        Raises:
            UserError: the GPU has too little free memory.
            ExportError: the network fails.
        """
        try:
            with torch.no_grad(), needs_memory():
                on_device = map_tensors(inputs, lambda tensor: tensor.to(self.device))
                logits_BC: Tensor = forward(self.network, on_device)
                return logits_BC.cpu()
        except UserError:
            raise
        except Exception as error:  # a user's network, or a runtime, can raise anything
            raise ExportError(f"{self.folder}: fails on {described(inputs)}: {one_line(error)}") from error

    def predict(self, paths: Sequence[Path], top: int) -> Iterator[RankedClass | DataError]:
        """The most probable classes of each image, in order; an error in place of an unusable image.

        Args:
            paths: the images.
            top: largest number of classes for each image.

        Raises:
            ExportError: the network takes no image files, or it fails.
        """
        if self.description.channels is None:
            raise ExportError(f"{self.folder}: takes samples that are no images: give a data set of such")
        if self.description.colours == "own":
            channels = self.description.channels
            raise ExportError(f"{self.folder}: takes images of {channels} channels, which no image file has")
        return self._predict([str(path) for path in paths], Images(paths, self.description), top)

    def predict_set(self, dataset: Dataset, top: int) -> Iterator[RankedClass | DataError]:
        """The most probable classes of each sample of a data set, otherwise as `predict`.

        Raises:
            ExportError: the network takes no such samples, or it fails.
        """
        if channels_of(dataset) != self.description.channels:
            found, wanted = (
                "samples that are no images" if channels is None else f"images of {channels} channels"
                for channels in (channels_of(dataset), self.description.channels)
            )
            raise ExportError(f"{self.folder}: takes {wanted}, and the data set has {found}")
        return self._predict(list(map(str, range(len(dataset)))), dataset, top, "row ")

    def _predict(
        self, names: Sequence[str], dataset: Dataset, top: int, prefix: str = ""
    ) -> Iterator[RankedClass | DataError]:
        prepared = preparation_of(self.folder, self.description)
        seen = prepared.views(dataset)
        for start in range(0, len(names), prepared.batch_size):
            chunk = list(islice(seen, prepared.batch_size))
            views = [view for view in chunk if not isinstance(view, DataError)]
            rows = iter(self.logits(prepared.stacked(views)) if views else ())
            for name, view in zip(names[start:], chunk, strict=False):
                if isinstance(view, DataError):
                    yield DataError(f"{prefix}{name}: {view.message}")
                elif not bool((row := next(rows)).isfinite().all()):
                    yield DataError(f"{prefix}{name}: the network's logits of it are NaN or infinite")
                else:
                    yield from self._ranked(name, row, top)

    def _ranked(self, sample: str, logits_C: Tensor, top: int) -> Iterator[RankedClass]:
        probabilities, classes = torch.sort(F.softmax(logits_C.double(), 0), descending=True, stable=True)
        for rank, (probability, label) in enumerate(
            zip(probabilities.tolist(), classes.tolist(), strict=True), 1
        ):
            if rank > top:
                return
            yield RankedClass(sample, rank, self.description.classes[label], probability)


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
    classes, channels, students = len(description.classes), description.channels, description.students
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


def dataset_in(specs: Sequence[str], description: Description) -> Dataset | None:
    """The data set that the arguments of a command name; None: they name image files and folders.

    Args:
        specs: the arguments.
        description: of the export; a table has the columns that it names, in any order.

    Raises:
        DataError: it takes no images, and there is not one data set; or as `open_dataset`.
    """
    if description.channels is not None and not (len(specs) == 1 and _is_dataset(specs[0])):
        return None
    if len(specs) > 1:
        raise DataError(f"the network takes samples that are no images: give one data set (got {len(specs)})")
    if description.columns is None:
        return open_dataset(specs[0])
    return open_samples(specs[0], description.columns.use, description.classes)


def _is_dataset(text: str) -> bool:
    """Whether an argument names a data set, not images."""
    path = Path(text)
    try:
        if path.is_dir():
            return any(next(path.glob(f"[!.]*{end}"), None) is not None for end in (".arrow", ".parquet"))
        is_file = path.suffix.lower() in (".arrow", *TABLES) or text.startswith((HUGGING_FACE, SHIPPED))
        return is_file or (is_import_string(text) and not path.exists())
    except (OSError, ValueError):  # told where the path is read
        return False


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
