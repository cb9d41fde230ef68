"""`kdcl data`: write and inspect data sets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcl_dist.cli.group import echo, kdcl, reports_errors

if TYPE_CHECKING:
    from kdcl_dist.data.dataset import Dataset
    from kdcl_dist.data.importers.held_out import Labelled

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
TRAIN = click.option("--train", default="train*", show_default=True, help="Pattern of the training files.")
TEST = click.option("--test", help='Pattern of the test files. [default: "test*", or else "val*"]')
FRACTION = click.FloatRange(0, 1, min_open=True, max_open=True)


def _of_images(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of all importers of JPEG and PNG files."""
    options = (
        WORKERS,
        click.option("--grey", is_flag=True, help="Images become grey, of one channel, when they are read."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the share."),
        click.option("--val-fraction", type=FRACTION, help="The same, as a set with the name val."),
        click.option("--test-fraction", type=FRACTION, help="Share of each class that becomes the test set."),
    )
    for option in options:
        command = option(command)
    return command


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
@click.option(
    "--classes", help="mnist, fashion-mnist, kmnist, emnist-letters, ...; or a file, a class name a line."
)
@reports_errors
def idx(source: Path, folder: Path, classes: str | None) -> None:
    """MNIST, Fashion-MNIST, KMNIST or EMNIST.

    SOURCE is a folder with train-images-idx3-ubyte.gz, or the same without .gz, and the other three files.
    Without --classes the classes are numbers.
    """
    from kdcl_dist.data.importers.idx import import_idx

    for path in import_idx(source, folder, classes):
        echo(str(path))


@import_data.command()
@SOURCE
@FOLDER
@click.option(
    "--shard-mb",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Megabytes of images in each file.",
)
@_of_images
@reports_errors
def imagefolder(
    source: Path,
    folder: Path,
    shard_mb: int,
    test_fraction: float | None,
    val_fraction: float | None,
    **options: Any,
) -> None:
    """JPEG and PNG files in class folders.

    SOURCE/train/CLASS/* and SOURCE/val/CLASS/* (or test), the layout of ImageNet; with a fraction,
    SOURCE/CLASS/*. An interrupted import goes on when it is started again.
    """
    from kdcl_dist.data.importers.imagefolder import ImageFolder

    fractions = {"test": test_fraction, "val": val_fraction}
    images = ImageFolder(source, flat=any(fractions.values()))
    _import_images(images, folder, fractions, shard_mb=shard_mb, **options)


@import_data.command()
@SOURCE
@FOLDER
@click.option("--image", default="image", show_default=True, help="Column of images: JPEG or PNG bytes.")
@click.option("--label", default="label", show_default=True, help="Column of labels: numbers or strings.")
@TRAIN
@TEST
@_of_images
@reports_errors
def table(
    source: Path,
    folder: Path,
    image: str,
    label: str,
    train: str,
    test: str | None,
    test_fraction: float | None,
    val_fraction: float | None,
    **options: Any,
) -> None:
    """Images in Parquet or Arrow files; or numbers and lists, in CSV and JSON lines too.

    SOURCE is a folder of them, or one file, the training set. An interrupted import of images goes on when
    it is started again. Without the column of images all columns but the label are numbers, which become one
    vector, or lists of numbers.
    """
    from kdcl_dist.data.importers.table import Table
    from kdcl_dist.data.sources.table_import import import_rows, tables_without_images

    fractions = {"test": test_fraction, "val": val_fraction}
    tables = tables_without_images(source, image, train, test)
    if tables is None:
        images = Table(source, image=image, label=label, train=train, test=test)
        _import_images(images, folder, fractions, **options)
        return
    for path in import_rows(tables, folder, label, fractions, options["seed"]):
        echo(str(path))


@import_data.command()
@SOURCE
@FOLDER
@click.option("--label", default="label", show_default=True, help="Field of the .json members, without .cls.")
@click.option("--classes", type=click.Path(path_type=Path), help="A file, a class name a line.")
@TRAIN
@TEST
@_of_images
@reports_errors
def webdataset(
    source: Path,
    folder: Path,
    label: str,
    classes: Path | None,
    train: str,
    test: str | None,
    test_fraction: float | None,
    val_fraction: float | None,
    **options: Any,
) -> None:
    """Images in tar files of WebDataset.

    SOURCE is a folder of them, or one file, the training set. A sample is KEY.jpg, .jpeg or .png, and KEY.cls
    or KEY.json with the label. Patterns may have braces: --train "train-{0000..0009}.tar". An interrupted
    import goes on when it is started again.
    """
    from kdcl_dist.data.importers.webdataset import WebDataset

    images = WebDataset(source, label=label, train=train, test=test, classes=classes)
    _import_images(images, folder, {"test": test_fraction, "val": val_fraction}, **options)


def _import_images(
    source: Labelled,
    folder: Path,
    fractions: dict[str, float | None],
    *,
    seed: int,
    grey: bool,
    workers: int,
    shard_mb: int | None = None,
) -> None:
    from rich.console import Console

    from kdcl_dist.cli.import_display import ImportProgress
    from kdcl_dist.data.importers.held_out import divided
    from kdcl_dist.data.importers.images import REJECTED, SHARD_MB, import_images

    with ImportProgress(Console(stderr=True)) as progress:
        done = import_images(
            divided(source, fractions, seed),
            folder,
            workers=workers,
            shard_mb=shard_mb or SHARD_MB,
            channels=1 if grey else 3,
            on_progress=progress.update,
        )
    for path in done.paths.values():
        echo(str(path))
    listed = f"; they are listed in {folder / REJECTED}" if done.rejected else ""
    echo(f"images imported: {done.accepted:,}, rejected: {done.rejected:,}{listed}")


@data.command()
@click.argument("spec")
@click.option("--label", help='Column of labels of a table. [default: "label", "target" or "class"]')
@reports_errors
def describe(spec: str, label: str | None) -> None:
    """Describe what data.train may be: a path, a table, hf:FOLDER, kdcl:NAME, or an import string."""
    from kdcl_dist.data.sources.opening import open_dataset

    def tell(text: str) -> None:
        echo(text)
        echo("")

    _show(open_dataset(spec, label, tell))


@data.command()
@click.argument("path")
@reports_errors
def inspect(path: str) -> None:
    """Describe the data set at PATH."""
    from kdcl_dist.data.arrow_samples import open_arrow

    _show(open_arrow(path))


def _show(dataset: Dataset) -> None:
    from kdcl_dist.data.describe import describe

    rows = describe(dataset)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        echo(f"{name:<{width}}  {value}")
