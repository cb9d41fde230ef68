"""Writing the logits of a network on a data set, for later runs in which the file is a member of the cohort.

Shapes: C classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import Dataset, fingerprint
from kdcl_dist.data.logits_writer import LogitsWriter
from kdcl_dist.data.sources.opening import DataSets, open_dataset
from kdcl_dist.data.stored_logits import TEST_VIEW, LogitsInfo
from kdcl_dist.errors import DataError, ExportError, one_line
from kdcl_dist.export.logit_sources import LogitSource, ViewsOf
from kdcl_dist.utils.text import shown

__all__ = ["Dtype", "Form", "Plan", "plan", "write"]

Dtype = Literal["fp32", "fp16"]
DTYPES: dict[str, Literal["float32", "float16"]] = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True)
class Form:
    """The form of a file.

    Attributes:
        views: training views of a sample. None: `data.views` of the recipe that it is for, or none.
        top_k: logits that are kept of a row. None: all.
        dtype: of the stored logits.
    """

    views: int | None = None
    top_k: int | None = None
    dtype: Dtype = "fp32"


@dataclass(frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        source: gives the logits.
        dataset: the samples.
        info: metadata of the file.
        out: the file.
    """

    source: LogitSource
    dataset: Dataset
    info: LogitsInfo
    out: Path

    @property
    def rows(self) -> int:
        """The rows of the file: of each sample the training views and the test view."""
        return len(self.dataset) * (self.info.views + 1)

    @property
    def bytes(self) -> int:
        """The size of the file, but for some kilobytes."""
        return self.rows * self.info.row_bytes

    def __str__(self) -> str:
        """The size in words."""
        kept = "" if self.info.top_k is None else f", the largest {self.info.top_k} of them kept"
        return (
            f"{self.out}: {len(self.dataset):,} samples, {self.info.seen}, "
            f"{self.rows:,} rows of {len(self.info.classes):,} classes{kept} in {self.info.dtype}: "
            f"{self.bytes / 1e6:,.1f} MB"
        )


def plan(
    source: LogitSource, out: str | Path, form: Form, *, data: str | None = None, recipe: Recipe | None = None
) -> Plan:
    """Open the data set that a file of logits is of; nothing is written.

    Args:
        source: gives the logits.
        out: the file to write.
        form: of the file.
        data: the data set, as `data.train` names one. None: that of the recipe.
        recipe: of the run that the file is for: gives the data set, and seed, transforms and number of the
            training views. None: the transforms and the seed are those of the run of the source.

    Raises:
        UserError: something cannot be opened, does not fit together, or has no room.
    """
    dataset = _dataset(data, recipe)
    classes = tuple(map(str, dataset.classes))
    _check_classes(source, classes, form)
    info = LogitsInfo(
        classes,
        fingerprint(dataset),
        len(dataset),
        source.fingerprint,
        shown(source.title),
        top_k=form.top_k,
        dtype=DTYPES[form.dtype],
        **_views(source, form, recipe),
    )
    found = Plan(source, dataset, info, Path(out))
    _check_room(found)
    return found


def write(plan: Plan, on_rows: Callable[[int], None] = lambda rows: None) -> Path:
    """Write the file; it appears when it is complete.

    Args:
        plan: what to write.
        on_rows: called with the number of rows that are written so far.

    Raises:
        UserError: the samples cannot be read, the network fails, or the file cannot be written.
    """
    info, source = plan.info, plan.source
    numbered = [(TEST_VIEW, source.test_view)]
    numbered += [(view, ViewsOf(info.augment, info.seed or 0, view)) for view in range(info.views)]
    with LogitsWriter(plan.out, info) as writer:
        for number, views in numbered:
            for ids_B, logits_BC in source.answers(plan.dataset, views):
                writer.add(ids_B, number, logits_BC)
                on_rows(writer.rows)
    return plan.out


def _views(source: LogitSource, form: Form, recipe: Recipe | None) -> dict[str, Any]:
    """The fields of the metadata that say which training views the file has."""
    seen = recipe or source.recipe
    given = None if recipe is None else recipe.data.views
    if not (count := (given or 0) if form.views is None else form.views):
        return {}
    if seen is None or source.test_view is None:
        raise ExportError(
            f"--views {count}: training views need a network, and --recipe for their transforms and seed"
        )
    augment = tuple(item.item() for item in seen.data.augment)
    return {"views": count, "seed": seen.seed, "augment": augment}


def _check_classes(source: LogitSource, classes: Sequence[str], form: Form) -> None:
    if source.classes is not None and tuple(source.classes) != classes:
        raise DataError(
            f"{source.title} has {len(source.classes)} classes ({_few(source.classes)}), and the data set "
            f"{len(classes)} ({_few(classes)}): the same names in the same order are needed"
        )
    if form.top_k is not None and form.top_k >= len(classes):
        raise ExportError(
            f"--top-k {form.top_k}: there are {len(classes)} classes: give fewer, or leave it out"
        )


def _dataset(data: str | None, recipe: Recipe | None) -> Dataset:
    if (data is None) == (recipe is None):
        raise ExportError("give one of --data and --recipe: the data set whose logits are written")
    return DataSets(recipe.data).open("train") if recipe is not None else open_dataset(data or "")


def _check_room(plan: Plan) -> None:
    try:
        if plan.out.exists():
            raise ExportError(f"--out {str(plan.out)!r} exists already: delete it, or name another file")
        folder = next((each for each in plan.out.absolute().parents if each.is_dir()), Path("/"))
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ExportError(f"--out {str(plan.out)!r}: {one_line(error)}") from None
    if (free := shutil.disk_usage(folder).free) < plan.bytes:
        raise ExportError(
            f"{plan}, and {folder} has {free / 1e6:,.1f} MB free; --top-k or --dtype fp16 take less"
        )


def _few(names: Collection[str]) -> str:
    first = list(names)[:3]
    return ", ".join(map(str, first)) + (", ..." if len(names) > len(first) else "")
