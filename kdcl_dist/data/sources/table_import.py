"""Importing a table without images: columns of numbers and lists become one file for each split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kdcl_dist.data.arrow_samples import open_arrow
from kdcl_dist.data.importers.held_out import share_of_each_class
from kdcl_dist.data.importers.presence import real_name
from kdcl_dist.data.importers.split_files import split_files
from kdcl_dist.data.sources.opened import Opened
from kdcl_dist.data.sources.table import SUFFIXES, Table, is_text
from kdcl_dist.data.sources.table_set import plan_use, write_set
from kdcl_dist.errors import DataError
from kdcl_dist.utils.staging import staged

__all__ = ["import_rows", "tables_without_images"]


def tables_without_images(source: Path, image: str, train: str, test: str | None) -> dict[str, Table] | None:
    """The tables of each split; None if the first has the column of images, or can be no table of rows.

    Args:
        source: a file, or a folder of files.
        image: the column of images.
        train, test: as `split_files` takes them.

    Raises:
        DataError: a table in text is damaged.
    """
    try:
        files = split_files(source, train, test, (*SUFFIXES, ".arrow"))
    except DataError:
        return None  # the importer of images says the same
    tables = {split: Table(real_name(source), tuple(found), {}) for split, found in files.items()}
    first = tables["train"].files[0]
    try:
        has_images = image in tables["train"].schema.names
    except DataError:
        if is_text(first):
            raise
        return None
    return None if has_images else tables


def import_rows(
    tables: Mapping[str, Table], folder: Path, label: str, fractions: Mapping[str, float | None], seed: int
) -> list[Path]:
    """Write `train.arrow`, and a file for the other split.

    Args:
        tables: of `tables_without_images`.
        folder: the folder to write; must be missing or empty.
        label: the column of labels.
        fractions: the share of each class of the training set that becomes a split, by its name; at most one
            is not None.
        seed: draws the share.

    Raises:
        DataError: as `plan_use` and `write_set`; or the fractions do not fit the table.
    """
    given = {split: share for split, share in fractions.items() if share is not None}
    train, *others = tables
    if len(given) > 1 or (given and others):
        raise DataError(f"--{next(iter(given))}-fraction: there is another split already; give one of them")
    use = plan_use(tables[train], label)
    with staged(folder) as part:
        part_of_class: set[int] = set()
        for split, share in given.items():
            part_of_class.update(share_of_each_class(np.array(use.labels), share, seed).tolist())
            if not part_of_class:
                raise DataError(f"--{split}-fraction: no class has two rows, so none can be held out")
        write_set(tables[train], use, part / "train.arrow", lambda row: row not in part_of_class)
        opened = Opened(open_arrow(str(part / "train.arrow")), use.columns)
        for split in others:
            write_set(tables[split], plan_use(tables[split], label, opened), part / f"{split}.arrow")
        for split in given:
            write_set(tables[train], use, part / f"{split}.arrow", part_of_class.__contains__)
    return [folder / f"{split}.arrow" for split in (train, *others, *given)]
