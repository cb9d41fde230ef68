"""Importing any number of encoded images: checked in parallel, written in shards, resumable.

A source gives its images split by split, always in the same order. The sizes of the images alone determine
the images of each shard, so an import that goes on makes the same shards.

Shapes: C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from kdcl_dist.data.dataset import ArrowDataset, Info
from kdcl_dist.data.importers.check import UNLABELLED, Item, Rejected, Workers, accept, moments
from kdcl_dist.data.importers.journal import Journal, Reject, Shard
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.hidden import is_hidden
from kdcl_dist.utils.staging import part_of, publish
from kdcl_dist.utils.text import shown

__all__ = ["REJECTED", "SHARD_MB", "Imported", "OnProgress", "Source", "import_images"]

REJECTED = "rejected.txt"
SHARD_MB = 256
#: At most this many training images determine mean and deviation.
SAMPLE = 10_000

#: Takes the current task, and how many of how many images are done.
OnProgress = Callable[[str, int, int], None]


class Source(Protocol):
    """Images in splits; the first split is the training set."""

    @property
    def name(self) -> str:
        """The source, for the metadata of the data set."""

    @property
    def identity(self) -> str:
        """A digest that differs when any image may differ."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    @property
    def class_folders(self) -> tuple[Path, ...]:
        """Folders in which each folder is a class; empty: the classes are no folders."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each split."""

    def items(self, split: str) -> Iterator[Item]:
        """The images of a split, always in the same order."""


class Imported(NamedTuple):
    """Data sets by split, and the numbers of accepted and of rejected images."""

    paths: dict[str, Path]
    accepted: int
    rejected: int


def import_images(
    source: Source,
    folder: Path,
    *,
    workers: int,
    on_progress: OnProgress,
    shard_mb: int = SHARD_MB,
    channels: int = 3,
) -> Imported:
    """Write a folder of shards for each split, and `rejected.txt` if any image cannot be decoded.

    The import collects its files in `FOLDER.part`, which it renames at the end. An interrupted import goes on
    from there.

    Args:
        source: the images.
        folder: the folder to write; must be missing or empty.
        workers: processes that check images; 0 checks in this process.
        on_progress: takes the progress, see `OnProgress`.
        shard_mb: megabytes (10^6 bytes) of images in a shard.
        channels: 1 for grey, 3 for red, green, blue: what images become when they are read.

    Raises:
        DataError: the folder cannot be written, holds something else, is being written by another import or
            would count as a class of the source, or a class has no readable image.
    """
    part = part_of(folder)
    _check_outside(part, folder, source.class_folders)
    options = {"shard_mb": shard_mb, "channels": channels}
    identity = {"source": source.identity, "classes": list(source.classes)} | options
    with Journal.open(part, identity) as journal, Workers(workers) as pool:
        if journal.statistics is None:
            journal.add_statistics(_statistics(source, pool, on_progress, channels))
        info = _info(source, journal.statistics or {}, channels)
        shards = {
            split: list(_write_split(source, split, journal, info, pool, on_progress, shard_mb * 10**6))
            for split in source.counts
        }
        rejected = [
            (name, why) for found in shards.values() for shard in found for _, name, why in shard.rejected
        ]
        _write_rejected(part / REJECTED, rejected)
        accepted = sum(
            _count(part / split, shards[split], source.classes, part / REJECTED) for split in shards
        )
        publish(part, folder)
        journal.remove(folder)
    return Imported({split: folder / split for split in source.counts}, accepted, len(rejected))


def _check_outside(part: Path, folder: Path, class_folders: Iterable[Path]) -> None:
    """See that what is written is not read as a class: an import that was interrupted could not go on."""
    inner = Path(os.path.realpath(part))
    for above in (Path(os.path.realpath(each)) for each in class_folders):
        if inner.is_relative_to(above) and not is_hidden(inner.relative_to(above)):
            raise DataError(f"{folder}: lies in {above}, where folders are classes: choose a path outside it")


def _statistics(
    source: Source, pool: Workers, on_progress: OnProgress, channels: int
) -> dict[str, list[float]]:
    """Mean and deviation of each channel over the pixels of evenly spaced training images."""
    split = next(iter(source.counts))
    count = source.counts[split]
    size = min(count, SAMPLE)
    chosen = (
        item
        for row, item in enumerate(source.items(split))
        if row * size // count != (row - 1) * size // count
    )
    pixels, first_C, second_C = 0, [0] * channels, [0] * channels
    for done, (_, found) in enumerate(pool.map(partial(moments, channels=channels), chosen), 1):
        on_progress("mean and deviation", done, size)
        if found is not None:
            pixels += found[0]
            first_C = [a + b for a, b in zip(first_C, found[1], strict=True)]
            second_C = [a + b for a, b in zip(second_C, found[2], strict=True)]
    if not pixels:
        raise DataError(f"{split}: none of {size} images that were tried can be decoded")
    mean_C = np.array(first_C) / pixels
    std_C = np.sqrt(np.maximum(np.array(second_C) / pixels - mean_C**2, 0))
    std_C[std_C == 0] = 255  # of a constant channel, whose pixels then become 0
    return {"mean": (mean_C / 255).tolist(), "std": (std_C / 255).tolist()}


def _info(source: Source, statistics: dict[str, list[float]], channels: int) -> Info:
    mean, std = tuple(statistics["mean"]), tuple(statistics["std"])
    return Info(source.classes, "encoded", channels, None, mean, std, source.name)


def _write_split(
    source: Source,
    split: str,
    journal: Journal,
    info: Info,
    pool: Workers,
    on_progress: OnProgress,
    shard_bytes: int,
) -> Iterator[Shard]:
    """The shards of a split, each after it is written or found finished."""
    done, total = 0, source.counts[split]

    def counted(items: Iterable[Item]) -> Iterator[Item]:
        """The items, counted once they are written."""
        nonlocal done
        for item in items:
            yield item
            done += 1
            on_progress(split, done, total)

    for number, items in groupby(source.items(split), _ShardNumber(shard_bytes)):
        name = f"{split}/shard-{number:05d}.arrow"
        shard = journal.finished(name)
        if shard is None:
            shard = _write_shard(journal.folder, name, counted(items), info, pool)
            journal.add_shard(shard)
        else:
            for _ in counted(items):
                pass
        yield shard
    if done != total:
        raise DataError(f"{split}: the source changed during the import: {total} images became {done}")


class _ShardNumber:
    """Numbers the shard of each image; takes the images in order."""

    def __init__(self, shard_bytes: int) -> None:
        self.shard_bytes, self.before = shard_bytes, 0

    def __call__(self, item: Item) -> int:
        number = self.before // self.shard_bytes
        self.before += item.size
        return number


def _write_shard(folder: Path, name: str, items: Iterable[Item], info: Info, pool: Workers) -> Shard:
    rejected: list[Reject] = []

    def samples() -> Iterator[tuple[int, bytes]]:
        """The accepted samples; the others are noted."""
        for item, found in pool.map(partial(accept, channels=info.channels), items):
            if isinstance(found, Rejected):
                rejected.append((item.label, item.name, found.reason))
            else:
                yield item.label, found

    accepted = samples()
    first = next(accepted, None)
    digest = None if first is None else write_dataset(folder / name, chain([first], accepted), info)
    return Shard(name, digest, rejected)


def _count(folder: Path, shards: list[Shard], classes: Sequence[str], report: Path) -> int:
    """Number of images in a split's folder.

    Raises:
        DataError: all images of a class were rejected.
    """
    labels_N = ArrowDataset(str(folder)).labels if any(shard.digest for shard in shards) else np.array([])
    rejected = {label for shard in shards for label, _, _ in shard.rejected} - {UNLABELLED}
    lost = [classes[label] for label in sorted(rejected - set(np.unique(labels_N).tolist()))]
    if lost:
        raise DataError(
            f"{folder.name}: no readable image in {len(lost)} of {len(classes)} classes: "
            f"{', '.join(lost[:10])}{', ...' if len(lost) > 10 else ''}; see {report}"
        )
    return len(labels_N)


def _write_rejected(path: Path, rejected: list[tuple[str, str]]) -> None:
    lines = ["\t".join(map(shown, entry)) + "\n" for entry in rejected]
    try:
        path.unlink(missing_ok=True)
        if lines:
            path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {one_line(error)}") from error
