"""`kdcl data`: write and inspect data sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcl_dist.cli.group import echo, kdcl, reports_errors

if TYPE_CHECKING:
    from kdcl_dist.data.importers.images import Source

__all__ = ["data"]

SOURCE = click.argument("source", type=click.Path(path_type=Path))
FOLDER = click.argument("folder", type=click.Path(path_type=Path))
WORKERS = click.option(
    "--workers",
    type=click.IntRange(0),
    default=os.cpu_count() or 1,
    show_default="cores",
    help="Processes that check images; 0 checks in this process.",
)


@kdcl.group()
def data() -> None:
    """Write and inspect data sets."""


@data.group("import")
def import_data() -> None:
    """Write a data set into a FOLDER."""


@import_data.command()
@FOLDER
@reports_errors
def digits(folder: Path) -> None:
    """The UCI handwritten digits."""
    from kdcl_dist.data.importers.digits import import_digits

    for path in import_digits(folder):
        echo(str(path))


def _add_cifar(kind: str, title: str) -> None:
    @import_data.command(
        kind, help=f"{title} from SOURCE: {title.lower()}-python.tar.gz, or its unpacked folder."
    )
    @SOURCE
    @FOLDER
    @click.option("--no-checksum", is_flag=True, help="Import files that are not the official ones.")
    @reports_errors
    def cifar(source: Path, folder: Path, no_checksum: bool) -> None:
        """Import the archive."""
        from kdcl_dist.data.importers.cifar import import_cifar

        for path in import_cifar(kind, source, folder, checksums=not no_checksum):
            echo(str(path))


_add_cifar("cifar10", "CIFAR-10")
_add_cifar("cifar100", "CIFAR-100")


@import_data.command()
@SOURCE
@FOLDER
@WORKERS
@click.option(
    "--shard-mb",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Megabytes of images in each file.",
)
@reports_errors
def imagefolder(source: Path, folder: Path, workers: int, shard_mb: int) -> None:
    """JPEG and PNG files SOURCE/train/CLASS/* and SOURCE/val/CLASS/*, the layout of ImageNet.

    An interrupted import goes on when it is started again.
    """
    from kdcl_dist.data.importers.imagefolder import ImageFolder

    _import_images(ImageFolder(source), folder, workers, shard_mb)


@import_data.command()
@SOURCE
@FOLDER
@click.option("--image", default="image", show_default=True, help="Column of images: JPEG or PNG bytes.")
@click.option("--label", default="label", show_default=True, help="Column of labels: numbers or strings.")
@click.option("--train", default="train*", show_default=True, help="Pattern of the training files.")
@click.option("--test", help='Pattern of the test files. [default: "test*", or else "val*"]')
@WORKERS
@reports_errors
def table(
    source: Path, folder: Path, image: str, label: str, train: str, test: str | None, workers: int
) -> None:
    """Parquet or Arrow files: SOURCE is a folder of them, or one file, the training set.

    An interrupted import goes on when it is started again.
    """
    from kdcl_dist.data.importers.images import SHARD_MB
    from kdcl_dist.data.importers.table import Table

    _import_images(Table(source, image=image, label=label, train=train, test=test), folder, workers, SHARD_MB)


def _import_images(source: Source, folder: Path, workers: int, shard_mb: int) -> None:
    from rich.console import Console

    from kdcl_dist.cli.import_display import ImportProgress
    from kdcl_dist.data.importers.images import REJECTED, import_images

    with ImportProgress(Console(stderr=True)) as progress:
        done = import_images(source, folder, workers=workers, shard_mb=shard_mb, on_progress=progress.update)
    for path in done.paths.values():
        echo(str(path))
    listed = f"; they are listed in {folder / REJECTED}" if done.rejected else ""
    echo(f"images imported: {done.accepted:,}, rejected: {done.rejected:,}{listed}")


@data.command()
@click.argument("path")
@reports_errors
def inspect(path: str) -> None:
    """Describe the data set at PATH."""
    from kdcl_dist.data.dataset import ArrowDataset
    from kdcl_dist.data.describe import describe

    rows = describe(ArrowDataset(path))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        echo(f"{name:<{width}}  {value}")
