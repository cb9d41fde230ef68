"""`preprocessing.json`: the inputs of an exported network, and the meaning of its outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator
from torch import Tensor

from kdcl_dist.config.base import Strict
from kdcl_dist.config.collate import CollateSpec
from kdcl_dist.config.error_text import describe_errors
from kdcl_dist.config.model import Model, ModelSpec
from kdcl_dist.config.stored_imports import transform_imports
from kdcl_dist.data.dataset import ImageDataset
from kdcl_dist.data.layout import Layout
from kdcl_dist.data.sources.table_columns import Columns
from kdcl_dist.errors import ExportError, one_line
from kdcl_dist.export.source import Source, label_of
from kdcl_dist.utils.files import open_regular, read_regular
from kdcl_dist.version import __version__

__all__ = ["DESCRIPTION", "Description", "Kind", "digest", "read_description"]

DESCRIPTION = "preprocessing.json"
#: Bytes of the largest description that is read; the names of 100,000 classes fit.
MAX_BYTES = 10_000_000

Kind = Literal["state_dict", "safetensors", "torch_export", "onnx"]


class TableColumns(Strict):
    """The columns of a table of numbers, each row of which is a sample.

    Attributes:
        numbers: columns of one number a row, in the order of the vector `numbers`.
        lists: columns of a list of numbers a row, by whether the numbers are whole.
    """

    numbers: tuple[str, ...]
    lists: dict[str, bool]

    @property
    def use(self) -> Columns:
        """The same as a data set has it; there is no label."""
        return Columns("", None, self.numbers, self.lists, ())


class Description(Strict):
    """The description of an export: all that its use needs.

    The steps of preprocessing images are: decode an image file to uint8 in `colours`, channels first; apply
    `test_view`, transforms of torchvision.transforms.v2 (or import strings) with their arguments, whose
    result must have `input_shape`, (C, H, W); divide by 255, subtract `mean` and divide by `std`, channel by
    channel; stack images to float32 (B, C, H, W). The network returns logits (B, classes).

    Other samples have format 2, and are of the layout `inputs`: in a shape, null stands for a first axis of
    any length. The steps are: apply `test_view`; where there are `mean` and `std`, subtract and divide by
    them, feature by feature of the last axis of the tensors that they name; stack, as the recipe's
    `collate` says; pad the tensors that `lengths` names to these lengths, of which the file takes no other. A
    dict's tensors are the network's keyword arguments, a tuple's its positional ones. Where a sample was made
    of a table's row, `columns` names the columns, in the order of the numbers.

    `seed` seeds random transforms of the test view. `sha256` is the digest of the file `weights`. `students`
    are the networks of an ensemble by student; its logits are the logarithms of the mean probabilities.
    """

    format: Literal[1, 2] = 1
    kdcl_dist: str = __version__
    run: str
    student: str
    model: ModelSpec
    step: int
    kind: Kind
    weights: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    input_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    layout: Literal["NCHW"] | None = None
    colours: Literal["grey", "RGB", "own"] | None = None
    inputs: Layout | None = None
    columns: TableColumns | None = None
    collate: CollateSpec | None = None
    lengths: dict[str, PositiveInt] | None = None
    test_view: list[dict[str, Any]]
    mean: list[float] | dict[str, list[float]] | None = None
    std: list[float] | dict[str, list[float]] | None = None
    classes: Annotated[list[str], Field(min_length=1)]
    seed: int
    students: dict[str, ModelSpec] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        if (self.format == 1) != (self.inputs is None):
            raise ValueError("format 2, and no other, has inputs")
        if self.inputs is None:
            _check_images(self.input_shape, self.colours, self.mean, self.std)
        elif not all(isinstance(numbers, dict | None) for numbers in (self.mean, self.std)):
            raise ValueError("mean and std must have numbers for tensors by their names")
        if not all(isinstance(item.get("name"), str) for item in self.test_view):
            raise ValueError("every transform of test_view must have a name")
        if Path(self.weights).name != self.weights:
            raise ValueError(f"weights must be a file beside it (got {self.weights!r})")
        return self

    @property
    def channels(self) -> int | None:
        """Channels of the images; None: the samples are no images."""
        return self.input_shape[0] if self.input_shape else None

    def import_strings(self, *, builds_network: bool) -> dict[str, str]:
        """The text of each field that is imported where it is an import string, by the field's path.

        Args:
            builds_network: whether the weights need the network's code; a file of its own program does not.
        """
        networks = {f"students.{name}": model for name, model in (self.students or {}).items()}
        used = (networks or {"model": self.model}) if builds_network else {}
        own = {path: text for path, model in used.items() if (text := Model.of(model).import_string)}
        collate = {"collate": self.collate} if isinstance(self.collate, str) else {}
        return own | collate | dict(transform_imports("test_view", self.test_view))

    @classmethod
    def of(cls, source: Source, kind: Kind, weights: Path, lengths: dict[str, int]) -> Description:
        """The description of an export of `source` with the file `weights`.

        Args:
            source: what is exported.
            kind: the format.
            weights: the file.
            lengths: of `write_network`.
        """
        test, of_images = source.training_data.test, source.training_data.channels is not None
        return cls(
            run=label_of(source.folder),
            student=source.student.name,
            model=source.student.model,
            step=source.step,
            kind=kind,
            weights=weights.name,
            sha256=digest(weights),
            test_view=source.recipe.data.test_items,
            **(_of_images(source) if of_images else _of_samples(source, lengths)),
            classes=list(test.classes),
            seed=source.recipe.seed,
            students={each.name: each.model for each in source.members} or None,
        )


def _of_images(source: Source) -> dict[str, Any]:
    """The fields of an export that takes images."""
    train, images_BCHW = source.training_data.train, source.example.inputs
    assert isinstance(train, ImageDataset)
    assert isinstance(images_BCHW, Tensor)
    return {
        "input_shape": tuple(images_BCHW.shape[1:]),
        "layout": "NCHW",
        "colours": {1: "grey", 3: "RGB"}.get(train.channels, "own"),
        "mean": [float(value) for value in train.mean],
        "std": [float(value) for value in train.std],
    }


def _of_samples(source: Source, lengths: dict[str, int]) -> dict[str, Any]:
    """The fields of an export that takes other samples."""
    scale, collate = source.training_data.scale, source.recipe.data.collate
    columns = source.training_data.columns
    return {
        "format": 2,
        "inputs": source.example.layout,
        "columns": columns and TableColumns(numbers=columns.numbers, lists=columns.lists),
        "collate": collate,
        "lengths": lengths or None,
        **(scale.numbers() if scale is not None else {}),
    }


def _check_images(shape: Any, colours: str | None, mean: Any, std: Any) -> None:
    """Raise `ValueError` if the fields of an export that takes images do not fit together."""
    if shape is None or colours is None:
        raise ValueError("input_shape and colours are needed")
    if not (isinstance(mean, list) and isinstance(std, list)) or not (
        len(mean) == len(std) == shape[0] and all(value > 0 for value in std)
    ):
        raise ValueError(f"mean and std must have {shape[0]} numbers, one a channel, and std above 0")


def read_description(folder: Path) -> Description:
    """Read an export's description.

    Raises:
        ExportError: the folder is no export or has another format, or the file is damaged.
    """
    path = folder / DESCRIPTION
    try:
        text = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise ExportError(
            f"{folder}: not an export: it has no {DESCRIPTION}; `kdcl export` writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read: {one_line(error)}") from None
    try:
        return Description.model_validate_json(text)
    except ValidationError as error:
        raise ExportError(f"{path}: {describe_errors(error, Description)}; export it again") from None


def digest(path: Path) -> str:
    """A file's SHA-256; raises `OSError` when it cannot be read, `ValueError` when it is no regular file."""
    found = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
