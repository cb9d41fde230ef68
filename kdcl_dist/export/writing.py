"""Writing an export: a folder that appears complete or not at all.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

import torch

from kdcl_dist.config.model import Model, library_of
from kdcl_dist.data.samples import forward
from kdcl_dist.errors import ExportError, one_line
from kdcl_dist.export.card import CARD, card
from kdcl_dist.export.ensemble import ensemble_without_package
from kdcl_dist.export.formats import FORMATS, read_network, require, write_network
from kdcl_dist.export.preprocessing import DESCRIPTION, Description, Kind
from kdcl_dist.export.source import Source, label_of
from kdcl_dist.export.standalone import CONFIG, MODULE, call_without_package, module_without_package
from kdcl_dist.run.epochs import Epoch
from kdcl_dist.utils.staging import staged

__all__ = ["export"]

#: Largest difference of logits, relative to the largest logit: deep networks magnify rounding.
TOLERANCE = 1e-3


def export(
    uri: str,
    student: str,
    kind: Kind,
    *,
    epoch: Epoch | None = None,
    last: bool = False,
    ema: bool = False,
    to: str | Path | None = None,
    warn: Callable[[str], None] = lambda text: None,
    allow_imports: Collection[str] = (),
) -> Path:
    """Write a student of a run, or the ensemble of all, as a folder that does not need this package.

    Args:
        uri, student, epoch, last, ema, warn, allow_imports: as for `Source.load`.
        kind: the format.
        to: the folder, on this machine. By default exports/RUN-STUDENT-FORMAT, or RUN-STUDENT-ema-FORMAT.

    Returns:
        The folder.

    Raises:
        UserError: the student or checkpoint does not exist, the folder exists already, or the format cannot
            express the network.
    """
    require(kind)
    if "://" in str(to):
        raise ExportError(f"--to {str(to)!r}: a folder of this machine is needed; copy it from there")
    source = Source.load(
        uri, student, epoch=epoch, last=last, ema=ema, warn=warn, allow_imports=allow_imports
    )
    folder = Path(to or f"exports/{label_of(source.folder)}-{source.title.replace('/', '-')}-{kind}")
    try:
        with staged(folder) as part:
            write(source, kind, part)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written: {one_line(error)}") from error
    return folder


def write(source: Source, kind: Kind, folder: Path) -> None:
    """Write all files of an export into a folder, and check that the weights give the student's logits."""
    form, path = FORMATS[kind], folder / FORMATS[kind].file
    lengths = write_network(kind, source.network, source.example, path)
    difference = _difference(source, kind, path)
    description = Description.of(source, kind, path, lengths)
    model, classes, channels = source.student.model, len(description.classes), description.channels
    files = {
        DESCRIPTION: description.model_dump_json(indent=1, exclude_none=True) + "\n",
        CARD: card(source, description, difference),
    }
    if description.students and not form.program:
        files |= ensemble_without_package(description.students, classes, channels)
    if library_of(Model.of(model).name) == "hf" and not source.members:
        files[CONFIG] = cast(Any, source.network).config.to_json_string()
    module = module_without_package(model, classes, channels)
    if module is not None and not form.program and call_without_package(model, classes, channels) is None:
        files[MODULE] = module
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _difference(source: Source, kind: Kind, path: Path) -> float:
    """The largest difference between the logits of the file and of the student on test samples.

    Raises:
        ExportError: the difference exceeds rounding errors.
    """
    inputs = source.example.inputs
    read = read_network(kind, path, source.build)
    with torch.no_grad():
        expected_BC, found_BC = forward(source.network, inputs), forward(read, inputs)
    difference = float((found_BC - expected_BC).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected_BC.abs().max())):  # also true for NaN
        raise ExportError(
            f"student {source.student.name!r} as {kind} gives other logits than the student itself, by up to "
            f"{difference:g}: does its network draw random numbers in evaluation mode?"
        )
    return difference
