"""What gives logits to store: a student of a run or its ensemble, an export, or a NumPy file of logits.

Shapes: B samples, C classes, N samples of a data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import Dataset, ImageDataset, channels_of
from kdcl_dist.data.loader import normalise
from kdcl_dist.data.sample_views import SampleViews, collate_of, transforms_of
from kdcl_dist.data.samples import Inputs, forward, map_tensors
from kdcl_dist.data.sampling import Ids
from kdcl_dist.data.views import Views
from kdcl_dist.errors import DataError, ExportError, one_line
from kdcl_dist.export.inputs import preparation_of
from kdcl_dist.export.prediction import Export
from kdcl_dist.export.preprocessing import DESCRIPTION
from kdcl_dist.export.source import Source
from kdcl_dist.run.epochs import Epoch
from kdcl_dist.run.metrics import ENSEMBLE
from kdcl_dist.utils.devices import choose_device, needs_memory
from kdcl_dist.utils.files import open_regular

__all__ = ["Answers", "LogitSource", "ViewsOf", "open_source"]

Answers = Iterator[tuple[Ids, Tensor]]


class ViewsOf(NamedTuple):
    """The views of a data set's samples: the transforms as a recipe has them, their seed, and which view."""

    items: Sequence[Mapping[str, Any]]
    seed: int
    number: int


class LogitSource(Protocol):
    """What gives logits."""

    @property
    def title(self) -> str:
        """It in words."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, in the order of the logits; None: they are not known."""

    @property
    def fingerprint(self) -> str:
        """Of the network's numbers; empty: there is none."""

    @property
    def recipe(self) -> Recipe | None:
        """Of the run; None: there is none."""

    @property
    def test_view(self) -> ViewsOf | None:
        """The test view; None: the source has no network, and one view only."""

    def answers(self, dataset: Dataset, views: ViewsOf | None) -> Answers:
        """The ids and the logits (B, C) of all samples of a data set, batch by batch.

        Raises:
            UserError: the samples are none that the network takes, or it fails.
        """


@dataclass(frozen=True)
class OfRun:
    """A student of a run, or the ensemble of all, which gives the logits that it gives in the run's tests.

    Attributes:
        source: the network, and the data that it was trained on, whose mean and deviation it takes.
        device: on which it computes.
        rows: samples of a batch; each batch has as many.
    """

    source: Source
    device: torch.device
    rows: int

    @property
    def title(self) -> str:
        """The student, the run and the epoch."""
        return f"{self.source.title} of {self.source.folder}, {self.source.when}"

    @property
    def classes(self) -> Sequence[str]:
        """Those of the run's data."""
        return self.source.training_data.train.classes

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over all weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.source.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.source.recipe

    @property
    def test_view(self) -> ViewsOf:
        """That of the run."""
        return ViewsOf(self.recipe.data.test_items, self.recipe.seed, 0)

    def answers(self, dataset: Dataset, views: ViewsOf | None) -> Answers:
        """See `LogitSource`."""
        assert views is not None
        known = self.source.training_data
        if channels_of(dataset) != known.channels:
            raise DataError(f"{self.title} takes other samples than those of the data set")
        transforms = transforms_of(known.train, views.items)
        made: Views | SampleViews
        if isinstance(dataset, ImageDataset):
            made = Views(dataset, transforms, views.seed)
        else:
            collate = collate_of(self.recipe.data.collate)
            made = SampleViews(dataset, transforms, views.seed, collate, known.scale)
        for start in range(0, len(dataset), self.rows):
            # A batch of another size could give other last bits.
            ids_B = np.arange(start, start + self.rows) % len(dataset)
            count = min(self.rows, len(dataset) - start)
            yield ids_B[:count], self._logits(made.batch(views.number, ids_B))[:count]

    @needs_memory()
    def _logits(self, inputs: Inputs) -> Tensor:
        train = self.source.training_data.train
        if isinstance(train, ImageDataset):
            assert isinstance(inputs, Tensor)
            inputs = normalise(inputs, train.mean, train.std)
        with torch.no_grad():
            on_device = map_tensors(inputs, lambda tensor: tensor.to(self.device))
            logits_BC: Tensor = forward(self.source.network, on_device)
        return logits_BC.float().cpu()


@dataclass(frozen=True)
class OfExport:
    """An exported network."""

    export: Export
    recipe: None = None

    @property
    def title(self) -> str:
        """The student, the run and the folder."""
        found = self.export.description
        return f"{found.student} of {found.run}, {self.export.folder}"

    @property
    def classes(self) -> Sequence[str]:
        """Those of its description."""
        return self.export.description.classes

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the file of weights."""
        return self.export.description.sha256

    @property
    def test_view(self) -> ViewsOf:
        """That of its description."""
        return ViewsOf(self.export.description.test_view, self.export.description.seed, 0)

    def answers(self, dataset: Dataset, views: ViewsOf | None) -> Answers:
        """See `LogitSource`."""
        assert views is not None
        changes = {"test_view": list(views.items), "seed": views.seed}
        prepared = preparation_of(self.export.folder, self.export.description.model_copy(update=changes))
        if channels_of(dataset) != self.export.description.channels:
            raise DataError(f"{self.title} takes other samples than those of the data set")
        seen, start = prepared.views(dataset, views.number), 0
        while chunk := list(islice(seen, prepared.batch_size)):
            for row, view in enumerate(chunk):
                if isinstance(view, DataError):
                    raise DataError(f"sample {start + row}: {view.message}")
            yield np.arange(start, start + len(chunk)), self.export.logits(prepared.stacked(chunk)).float()
            start += len(chunk)


@dataclass(frozen=True)
class OfFile:
    """A file `.npy` of logits (N, C), floating-point numbers in the order of a data set's samples.

    Attributes:
        logits_NC: mapped into memory.
    """

    path: Path
    logits_NC: np.ndarray[Any, np.dtype[Any]]
    classes: None = None
    recipe: None = None
    test_view: None = None

    @classmethod
    def load(cls, path: Path) -> OfFile:
        """Map the file; nothing in it is executed.

        Raises:
            DataError: it is missing, damaged, or has other numbers.
        """
        try:
            open_regular(path).close()
            found = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # damaged headers raise many types of exception
            raise DataError(f"{path}: no file of numpy.save: {one_line(error)}") from error
        if found.ndim != 2 or found.dtype.kind != "f":
            raise DataError(
                f"{path}: has {found.dtype} of shape {found.shape}; logits are floating-point numbers of "
                "shape (samples, classes)"
            )
        return cls(path, found)

    @property
    def title(self) -> str:
        """The file."""
        return str(self.path)

    @property
    def fingerprint(self) -> str:
        """None is known of a network."""
        return ""

    def answers(self, dataset: Dataset, views: ViewsOf | None) -> Answers:
        """See `LogitSource`."""
        expected = len(dataset), len(dataset.classes)
        if self.logits_NC.shape != expected:
            raise DataError(
                f"{self.path}: has shape {self.logits_NC.shape}, and the data set needs {expected}: one row "
                "for each sample, one number for each class"
            )
        for start in range(0, len(dataset), ROWS):
            part = np.asarray(self.logits_NC[start : start + ROWS], np.float32)
            yield np.arange(start, start + len(part)), torch.from_numpy(part)


#: Rows of a `.npy` file that are read at a time.
ROWS = 1024


def open_source(
    what: str,
    *,
    student: str | None = None,
    epoch: Epoch | None = None,
    rows: int | None = None,
    device: str = "auto",
    warn: Callable[[str], None] = lambda text: None,
    allow_imports: Collection[str] = (),
) -> LogitSource:
    """Open what gives logits.

    Args:
        what: a run folder's path or URI, an export, or a file `.npy` of logits (N, C).
        student: of a run; None: the ensemble.
        rows: samples of a batch; None: those of a round of the run.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        epoch, warn, allow_imports: as `Source.load`.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        of_export = (Path(what) / DESCRIPTION).exists()
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ExportError(f"{what}: {one_line(error)}") from None
    if (what.endswith(".npy") or of_export) and (student is not None or epoch is not None):
        raise ExportError(f"--student and --epoch are for run folders, and {what} is none")
    if what.endswith(".npy"):
        return OfFile.load(Path(what))
    if of_export:
        return OfExport(Export.read(Path(what), allow_imports, device))
    source = Source.load(what, student or ENSEMBLE, epoch=epoch, warn=warn, allow_imports=allow_imports)
    chosen = choose_device(device)
    source.network.to(chosen)
    return OfRun(source, chosen, rows or source.recipe.part_size)
