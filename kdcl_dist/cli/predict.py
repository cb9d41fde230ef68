"""`kdcl predict`."""

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
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes of each image.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values instead of a table.")
@takes_device
@allows_imports
@reports_errors
def predict(
    export: Path,
    images: tuple[Path, ...],
    top: int,
    as_csv: bool,
    device: str,
    allow_imports: tuple[str, ...],
) -> None:
    """Show the most probable classes of IMAGES, files or folders, by an EXPORT folder of any format."""
    import sys

    from kdcl_dist.export.prediction import Export, images_in

    found = Export.read(export, allow_imports, device)
    failed: list[DataError] = []
    _show(_readable(found.predict(images_in(images), top), failed), as_csv)
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


def _show(ranked: Iterator[RankedClass], as_csv: bool) -> None:
    import csv
    import sys

    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "rank", "class", "probability"])
        writer.writerows(
            (csv_cell(image), rank, csv_cell(name), f"{share:.6g}") for image, rank, name, share in ranked
        )
        return
    rows = [(shown(image), rank, shown(name, NAME), share) for image, rank, name, share in ranked]
    images = max((len(row[0]) for row in rows), default=0)
    names = max((len(row[2]) for row in rows), default=0)
    for image, rank, name, share in rows:
        first = image if rank == 1 else ""
        echo(f"{first:<{images}}  {name:<{names}}  {100 * share:6.2f} %")
