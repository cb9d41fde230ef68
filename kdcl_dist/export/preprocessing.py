"""`preprocessing.json`: the inputs of an exported network, and the meaning of its outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator

from kdcl_dist.config.base import Strict
from kdcl_dist.config.error_text import describe_errors
from kdcl_dist.config.model import Model, ModelSpec
from kdcl_dist.config.stored_imports import transform_imports
from kdcl_dist.errors import ExportError, one_line
from kdcl_dist.export.source import Source, label_of
from kdcl_dist.utils.files import open_regular, read_regular
from kdcl_dist.version import __version__

__all__ = ["DESCRIPTION", "Description", "Kind", "digest", "read_description"]

DESCRIPTION = "preprocessing.json"
#: Bytes of the largest description that is read; the names of 100,000 classes fit.
MAX_BYTES = 10_000_000

Kind = Literal["state_dict", "safetensors", "torch_export", "onnx"]


class Description(Strict):
    """The description of an export: all that its use needs.

    The steps of preprocessing are: decode an image file to uint8 in `colours`, channels first; apply
    `test_view`, transforms of torchvision.transforms.v2 (or import strings) with their arguments, whose
    result must have `input_shape`, (C, H, W); divide by 255, subtract `mean` and divide by `std`, channel by
    channel; stack images to float32 (B, C, H, W). The network returns logits (B, classes).

    `seed` seeds random transforms of the test view. `sha256` is the digest of the file `weights`. `students`
    are the networks of an ensemble by student; its logits are the logarithms of the mean probabilities.
    """

    format: Literal[1] = 1
    kdcl_dist: str = __version__
    run: str
    student: str
    model: ModelSpec
    step: int
    kind: Kind
    weights: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    input_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    layout: Literal["NCHW"] = "NCHW"
    colours: Literal["grey", "RGB", "own"]
    test_view: list[dict[str, Any]]
    mean: list[float]
    std: list[float]
    classes: Annotated[list[str], Field(min_length=1)]
    seed: int
    students: dict[str, ModelSpec] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        channels = self.input_shape[0]
        if not len(self.mean) == len(self.std) == channels or not all(value > 0 for value in self.std):
            raise ValueError(f"mean and std must have {channels} numbers, one a channel, and std above 0")
        if not all(isinstance(item.get("name"), str) for item in self.test_view):
            raise ValueError("every transform of test_view must have a name")
        if Path(self.weights).name != self.weights:
            raise ValueError(f"weights must be a file beside it (got {self.weights!r})")
        return self

    def import_strings(self, *, builds_network: bool) -> dict[str, str]:
        """The text of each field that is imported where it is an import string, by the field's path.

        Args:
            builds_network: whether the weights need the network's code; a file of its own program does not.
        """
        networks = {f"students.{name}": model for name, model in (self.students or {}).items()}
        used = (networks or {"model": self.model}) if builds_network else {}
        own = {path: text for path, model in used.items() if (text := Model.of(model).import_string)}
        return own | dict(transform_imports("test_view", self.test_view))

    @classmethod
    def of(cls, source: Source, kind: Kind, weights: Path, input_shape: tuple[int, int, int]) -> Description:
        """The description of an export of `source` with the file `weights`."""
        data, test = source.recipe.data, source.training_data.test
        return cls(
            run=label_of(source.folder),
            student=source.student.name,
            model=source.student.model,
            step=source.step,
            kind=kind,
            weights=weights.name,
            sha256=digest(weights),
            input_shape=input_shape,
            colours={1: "grey", 3: "RGB"}.get(test.channels, "own"),  # type: ignore[arg-type]
            test_view=data.test_items,
            mean=[float(value) for value in test.mean],
            std=[float(value) for value in test.std],
            classes=list(test.classes),
            seed=source.recipe.seed,
            students={each.name: each.model for each in source.members} or None,
        )


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
