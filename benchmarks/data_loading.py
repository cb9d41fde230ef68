"""Loading by torchvision and by kdcl, private memory of a student, and the first step of an epoch.

    python -m benchmarks.data_loading --out docs/results/data-loading.md

A temporary folder holds made-up JPEGs of ImageNet's size and raw images of CIFAR's. torchvision reads them
with ImageFolder (Pillow) and CIFAR10, `transforms.v2` and DataLoader; kdcl imports them and reads its own
files. Both apply the same transforms, and give normalised float32. Rounds alternate; compare ratios, not
times.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.data_files import TorchvisionCIFAR10, cifar, jpegs
from benchmarks.figures import Figure
from benchmarks.private_memory import growth, write_raw
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.decode import decoders
from kdcl_dist.data.loader import batches
from kdcl_dist.data.sampling import batches_of
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.data.views import Transforms, Views

WORKERS = (0, 1, 2)
BATCH = 32
IMAGENET: list[dict[str, Any]] = [
    {"name": "RandomResizedCrop", "size": 224},
    {"name": "RandomPhotometricDistort"},
    {"name": "RandomHorizontalFlip"},
]
WITHOUT_COLOURS = [IMAGENET[0], IMAGENET[2]]
CIFAR: list[dict[str, Any]] = [
    {"name": "RandomCrop", "size": 32, "padding": 4},
    {"name": "RandomHorizontalFlip"},
]
#: At least so many times torchvision's rate.
JPEG_GOAL, RAW_GOAL = 1.15, 1.0
#: Seconds of a step's computation in the measurement of an epoch's first step.
COMPUTE_S = 0.02


class Sizes(NamedTuple):
    """Sizes of the measurement.

    Attributes:
        rounds: number of rounds.
        jpegs: number of JPEGs.
        raw: raw images of each of five files.
        memory_images: images of the data set whose memory is measured.
        epochs: epochs over which the first step of an epoch is measured.
    """

    rounds: int
    jpegs: int
    raw: int
    memory_images: int
    epochs: int


FULL = Sizes(rounds=3, jpegs=256, raw=1000, memory_images=50_000, epochs=6)
QUICK = Sizes(rounds=1, jpegs=192, raw=500, memory_images=8_000, epochs=3)


class Speed(NamedTuple):
    """Median seconds for an image, by torchvision and by kdcl."""

    torchvision_s: float
    kdcl_s: float


def speed(theirs: Dataset[Any], ours: Views, workers: int, rounds: int) -> Speed:
    """Load all images both ways, in alternation.

    Without workers the seconds are those of the processor, which other work on the machine hardly changes.
    """
    clock = time.perf_counter if workers else time.process_time
    schedule = batches_of(np.arange(len(ours.dataset)), BATCH)

    def torchvision() -> Iterable[Any]:
        return DataLoader(theirs, batch_size=BATCH, num_workers=workers)

    def kdcl(epoch: int) -> Iterable[Any]:  # each with draws of its own, as torchvision's rounds have them
        return batches(ours, [(epoch, ids_B) for ids_B in schedule], workers=workers, timeout_s=120)

    found = [
        (_per_image(torchvision, clock), _per_image(partial(kdcl, epoch), clock)) for epoch in range(rounds)
    ]
    return Speed(*(median(column) for column in zip(*found, strict=True)))


def _per_image(load: Callable[[], Iterable[Any]], clock: Callable[[], float]) -> float:
    """Seconds for an image from the first batch to the last, which excludes the start of the workers."""
    stream = iter(load())
    next(stream)
    started = clock()
    images = sum(len(batch[0]) for batch in stream)
    return (clock() - started) / images


Pair = tuple[Dataset[Any], Views]


def pairs(folder: Path, sizes: Sizes) -> dict[str, Pair]:
    """The training views of ImageNet's and CIFAR's images, read by torchvision and by kdcl."""
    root, path = jpegs(folder / "jpeg", sizes.jpegs)
    cifar_root, cifar_path = cifar(folder / "raw", sizes.raw)
    files, raw = ArrowDataset(path), ArrowDataset(cifar_path)

    def images(items: list[dict[str, Any]]) -> Pair:
        return ImageFolder(str(root), _torchvision(items, files)), Views(files, Transforms(items), 0)

    theirs = TorchvisionCIFAR10(str(cifar_root), transform=_torchvision(CIFAR, raw))
    return {
        "JPEG, crop and flip": images(WITHOUT_COLOURS),
        "JPEG, ImageNet's view": images(IMAGENET),
        "raw, CIFAR's view": (theirs, Views(raw, Transforms(CIFAR), 0)),
    }


def _torchvision(items: list[dict[str, Any]], ours: ArrowDataset) -> v2.Compose:
    """The transforms on Pillow's images, as in torchvision's references, then normalised float32."""
    transforms = [
        getattr(v2, each["name"])(**{k: v for k, v in each.items() if k != "name"}) for each in items
    ]
    last = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(ours.mean, ours.std)]
    return v2.Compose([*transforms, *last])


class Start(NamedTuple):
    """Median data time in seconds: an epoch's first step, any other step, the first batch of a new loader."""

    first_s: float
    step_s: float
    new_loader_s: float


def epoch_start(epochs: int) -> Start:
    """Load the batches of a run with one loader process; steps compute nothing, but have a duration."""
    augment = "data.augment=[{name: RandomCrop, size: 8, padding: 1}]"
    overrides = [f"epochs={epochs}", "data.loader_workers=1", augment]
    training_data = TrainingData.open(load_recipe("examples/digits.yaml", overrides))
    stream = training_data.batches(0, Round(Kind.TRAIN, 0, 0))
    first: list[float] = []
    others: list[float] = []
    for round in training_data.schedule.rounds(Round(Kind.TRAIN, 0, 0)):
        if round.kind not in (Kind.TRAIN, Kind.HOLDOUT, Kind.EVALUATE):
            continue
        seconds = _timed(lambda: next(stream))
        time.sleep(COMPUTE_S)
        if round.kind is Kind.TRAIN and round.epoch > 0:
            starts = round.step == round.epoch * training_data.schedule.steps_per_epoch
            (first if starts else others).append(seconds)
    return Start(median(first), median(others), _timed(lambda: next(training_data.test_batches())))


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Measured(NamedTuple):
    """All figures of the page: speeds by kind of images and workers, memory by number of workers."""

    speeds: dict[str, dict[int, Speed]]
    memory: dict[int, float]
    start: Start


def measure(sizes: Sizes, workers: tuple[int, ...] = WORKERS) -> Measured:
    """Measure all figures; the calling process uses one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            made = pairs(folder, sizes)
            speeds = {
                kind: {w: speed(*pair, w, sizes.rounds) for w in workers} for kind, pair in made.items()
            }
            large, small = (
                write_raw(folder / f"{n}.arrow", n) for n in (sizes.memory_images, sizes.memory_images // 20)
            )
            memory = {w: growth(large, small, w) for w in sorted({workers[0], workers[-1]})}
            return Measured(speeds, memory, epoch_start(sizes.epochs))
    finally:
        torch.set_num_threads(threads)


def figures(quick: bool = False) -> list[Figure]:
    """Lines of the speed table; `quick` measures without workers only."""
    found = measure(QUICK if quick else FULL, (0,) if quick else WORKERS)
    lines = []
    for kind, speeds in found.speeds.items():
        for workers, (theirs_s, ours_s) in speeds.items():
            what = f"{kind}, loader processes: {workers}; torchvision's seconds for an image over kdcl's"
            goal = JPEG_GOAL if kind.startswith("JPEG") else RAW_GOAL
            lines.append(Figure("data", what, theirs_s / ours_s, goal, at_least=True))
    for workers, share in found.memory.items():
        what = f"private memory a student, share of the data set, loader processes: {workers}"
        lines.append(Figure("data", what, share, 0.05))
    ratio = found.start.first_s / found.start.step_s
    lines.append(Figure("data", "data time of an epoch's first step over the median step's", ratio, 1.5))
    return lines


def report(found: Measured, sizes: Sizes) -> str:
    """The figures with their conditions, as Markdown."""
    first_ms, step_ms, new_ms = (1000 * value for value in found.start)
    lines = [
        "# Loading data",
        "",
        f"{os.cpu_count()} cores ({platform.machine()}), load average {os.getloadavg()[0]:.1f} at the end,",
        f"PyTorch {torch.__version__}; {sizes.rounds} alternating rounds, medians, batch {BATCH}, one thread",
        "for each process; without loader processes the processor's seconds count. Made by",
        "`python -m benchmarks.data_loading`.",
        "",
        f"{sizes.jpegs} JPEGs of 500x375 with crop to 224 and flip, in ImageNet's view with photometric",
        f"distortion; {5 * sizes.raw} raw images of 32x32 with pad, crop and flip. torchvision: ImageFolder",
        f"or CIFAR10, v2 transforms, DataLoader. kdcl decodes by {decoders()}.",
        "",
        "| images | loader processes | torchvision, images/s | kdcl, images/s | kdcl / torchvision |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for kind, speeds in found.speeds.items():
        for workers, (theirs_s, ours_s) in speeds.items():
            rates = f"{1 / theirs_s:,.0f} | {1 / ours_s:,.0f}"
            lines.append(f"| {kind} | {workers} | {rates} | {theirs_s / ours_s:.2f} |")
    grown = " and ".join(f"{100 * share:.1f}% with {w} loader processes" for w, share in found.memory.items())
    lines += [
        "",
        "Private memory: pages that a process has written, and pages of the data that no other process maps,",
        "loader processes included. Two students read at the same time. Reading a raw data set of",
        f"{sizes.memory_images * 12288 / 1e6:.0f} MB needs more private memory than reading as many images",
        f"of a data set of a twentieth of that size, by this share of the data set: {grown}.",
        "",
        f"Data time of a step, one loader process, steps of {1000 * COMPUTE_S:.0f} ms: {first_ms:.2f} ms in",
        f"an epoch's first step, {step_ms:.2f} ms in the median step. The first batch of a new loader takes",
        f"{new_ms:.0f} ms; one loader serves a whole run, so no epoch starts another.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the page, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller data, one round")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    page = report(measure(sizes), sizes)
    print(page)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page)


if __name__ == "__main__":
    main()
