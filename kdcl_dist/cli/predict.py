"""`kdcl predict`: the classes that an export finds in images or samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcl_dist.cli.group import allows_imports, echo, echo_error, kdcl, reports_errors, takes_device
from kdcl_dist.utils.text import NAME, csv_cell, shown

if TYPE_CHECKING:
    from kdcl_dist.errors import DataError
    from kdcl_dist.export.prediction import RankedClass

__all__ = ["predict"]


@kdcl.command()
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes of each sample.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values instead of a table.")
@takes_device
@allows_imports
@reports_errors
def predict(
    export: Path,
    inputs: tuple[str, ...],
    top: int,
    as_csv: bool,
    device: str,
    allow_imports: tuple[str, ...],
) -> None:
    """Show the most probable classes of INPUTS by an EXPORT folder of any format.

    INPUTS are image files and folders; or one data set, a path or an import string, whose rows are counted
    from 0.
    """
    import sys

    from kdcl_dist.export.prediction import Export, dataset_in, images_in

    found = Export.read(export, allow_imports, device)
    failed: list[DataError] = []
    if (dataset := dataset_in(inputs, found.description)) is None:
        ranked = found.predict(images_in([Path(each) for each in inputs]), top)
    else:
        ranked = found.predict_set(dataset, top)
    _show(_readable(ranked, failed), "image" if dataset is None else "row", as_csv)
    for error in failed:
        echo_error(error)
    if failed:
        sys.exit(failed[0].exit_code)


def _readable(found: Iterator[RankedClass | DataError], failed: list[DataError]) -> Iterator[RankedClass]:
    from kdcl_dist.errors import DataError

    for each in found:
        if isinstance(each, DataError):
            failed.append(each)
        else:
            yield each


def _show(ranked: Iterator[RankedClass], what: str, as_csv: bool) -> None:
    import csv
    import sys

    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([what, "rank", "class", "probability"])
        writer.writerows(
            (csv_cell(sample), rank, csv_cell(name), f"{share:.6g}") for sample, rank, name, share in ranked
        )
        return
    rows = [(shown(sample), rank, shown(name, NAME), share) for sample, rank, name, share in ranked]
    samples = max((len(row[0]) for row in rows), default=0)
    names = max((len(row[2]) for row in rows), default=0)
    for sample, rank, name, share in rows:
        first = sample if rank == 1 else ""
        echo(f"{first:<{samples}}  {name:<{names}}  {100 * share:6.2f} %")
