"""Parts of `gpu`: a step of a cohort against the plain loop of its slowest student on the same GPU.

The plain loop repeats a student's step on one batch that lies ready in pinned memory, without kdcl and
without a wait for the GPU. The cohort loads its data, exchanges logits, and forms a soft target.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.device_timer import milliseconds
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.dataset import Info
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.run.metrics import ENSEMBLE, read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder
from kdcl_dist.student.student import Student
from kdcl_dist.training import train

__all__ = ["own_device", "shared_device"]


class Pair(NamedTuple):
    """Two networks, their images and settings, and the steps to take."""

    models: tuple[str, str]
    shape: tuple[int, int, int]
    classes: int
    batch: int
    steps: int
    loaders: int
    setting: str
    fields: str = ""


PAIRS = (
    Pair(("resnet32", "wrn_16_2"), (3, 32, 32), 100, 128, 100, 0, "fp32"),
    Pair(
        ("resnet18", "resnet50"),
        (3, 224, 224),
        1000,
        128,
        30,
        4,
        "bf16, channels_last",
        "precision: bf16, channels_last: true, ",
    ),
)
QUICK = (Pair(("cnn_medium", "cnn_small"), (1, 8, 8), 10, 16, 12, 1, "fp32"),)
#: The first steps are slower, of a cohort and of a plain loop.
WARMUP_STEPS = 5
#: Plain steps are timed in blocks, so that the host queues steps ahead of the GPU.
BLOCK, BLOCKS = 5, 6
PARTS = ("data_s", "forward_s", "wait_s", "exchange_s", "backward_s")
#: Seconds until all processes of plain loops are ready.
READY_S = 100.0


def own_device(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Each network with the GPU to itself; its peer is a network on the CPU that computes next to nothing."""
    for pair in QUICK if quick else PAIRS:
        with data_of(pair) as folder:
            for model in pair.models:
                recipe = recipe_of(pair, folder, device, [model, "benchmarks.gpu_networks:Peer"])
                before = plain(recipe, [0], device)[0]
                found = cohort(recipe, device)
                after = plain(recipe, [0], device)[0]
                alone = min(before.ms, after.ms)
                yield {
                    "network": f"{model}, {pair.shape[1]} px, batch {pair.batch}, {pair.setting}",
                    "alone ms": alone,
                    "with kdcl ms": found.ms[0],
                    "ratio": found.ms[0] / alone,
                    **found.parts[0],
                    "ensemble ms": found.ensemble_ms,
                    **hidden(found.ms[0] - alone, found.parts[0]["exchange ms"]),
                    "peak alone MB": before.peak / 1e6,
                    "peak with kdcl MB": found.peaks[0] / 1e6,
                }


def shared_device(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Two students on one GPU: the slower alone, both at once without kdcl, and as a cohort."""
    for pair in QUICK if quick else PAIRS:
        with data_of(pair) as folder:
            recipe = recipe_of(pair, folder, device, pair.models)
            single = [plain(recipe, [index], device)[0].ms for index in (0, 1)]
            both = [each.ms for each in plain(recipe, [0, 1], device)]
            found = cohort(recipe, device)
            slowest = found.ms.index(max(found.ms))
            yield {
                "networks": f"{' + '.join(pair.models)}, batch {pair.batch}, {pair.setting}",
                "MPS": "yes" if "CUDA_MPS_PIPE_DIRECTORY" in os.environ else "no",
                "slower alone ms": max(single),
                "both without kdcl ms": max(both),
                "with kdcl ms": max(found.ms),
                "ratio to the slower alone": max(found.ms) / max(single),
                "ratio to both": max(found.ms) / max(both),
                **found.parts[slowest],
                "ensemble ms": found.ensemble_ms,
                **hidden(max(found.ms) - max(both), found.parts[slowest]["exchange ms"]),
                "peaks MB": ", ".join(f"{peak / 1e6:.0f}" for peak in found.peaks),
                "GPU's memory MB": found.device_bytes / 1e6,
            }


def hidden(added_ms: float, exchange_ms: float) -> dict[str, float]:
    """What kdcl adds to a step, and the share of the exchange that this does not show."""
    return {"added ms": added_ms, "exchange hidden": min(1.0, max(0.0, 1 - added_ms / exchange_ms))}


@contextmanager
def data_of(pair: Pair) -> Iterator[Path]:
    """A folder with noise of the pair's shape for an epoch of its steps."""
    with tempfile.TemporaryDirectory() as name:
        noise, size = np.random.default_rng(0), int(np.prod(pair.shape))
        images = [noise.integers(0, 256, size, np.uint8).tobytes() for _ in range(64)]
        classes = tuple(str(number) for number in range(pair.classes))
        channels = pair.shape[0]
        info = Info(classes, "raw", channels, pair.shape, (0.5,) * channels, (0.29,) * channels, "noise")
        for split, count in (("train", pair.batch * pair.steps), ("test", pair.batch)):
            rows = ((number % pair.classes, images[number % 64]) for number in range(count))
            write_dataset(Path(name, f"{split}.arrow"), rows, info)
        yield Path(name)


def recipe_of(pair: Pair, folder: Path, device: torch.device, models: Sequence[str]) -> Recipe:
    """A recipe of two students; a peer of `gpu_networks` trains on the CPU."""
    students = []
    for name, model in zip("ab", models, strict=True):
        on_gpu = device.type == "cuda" and ":" not in model
        shares = 1.0 if any(":" in each for each in models) else 0.5
        gpu, fields = (shares, pair.fields) if on_gpu else (0, "")
        cpu = 1 if device.type == "cpu" else 2
        students.append(f"{{name: {name}, model: '{model}', {fields}resources: {{cpu: {cpu}, gpu: {gpu}}}}}")
    return parse_recipe(
        f"name: gpu\nepochs: 1\nbatch_size: {pair.batch}\n"
        f"data: {{train: {folder}/train.arrow, test: {folder}/test.arrow, loader_workers: {pair.loaders}}}\n"
        f"distillation: {{method: linear}}\ntracking: []\nstudents: [{', '.join(students)}]"
    )


class Plain(NamedTuple):
    """Milliseconds of a plain step, and the most bytes that its tensors took on a GPU."""

    ms: float
    peak: int


def plain(recipe: Recipe, indices: Sequence[int], device: torch.device) -> list[Plain]:
    """The plain loops of some students, all at once, each in a process of its own."""
    context = get_context("spawn")
    start, finished = context.Barrier(len(indices)), context.Value("i", 0)
    shared = start, finished, len(indices)
    with ProcessPoolExecutor(len(indices), context, _share, shared) as pool:
        jobs = [pool.submit(_plain, recipe, index, device.type) for index in indices]
        return [job.result() for job in jobs]


#: In a process of a plain loop: the barrier at the start, how many have finished, and of how many.
_shared: tuple[Any, ...] = ()


def _share(*shared: Any) -> None:
    global _shared
    _shared = shared


def _plain(recipe: Recipe, index: int, kind: str) -> Plain:
    """Time blocks of steps until every process has timed enough: none has the GPU to itself meanwhile."""
    start, finished, count = _shared
    device, spec = torch.device(kind), recipe.students[index]
    torch.set_num_threads(spec.resources.cpu)
    training_data = TrainingData.open(recipe)
    student = Student.of(training_data, index, device=device)
    batch = training_data.first_batch(index)
    assert isinstance(batch.inputs, Tensor)
    images = batch.inputs.pin_memory() if kind == "cuda" else batch.inputs
    target = torch.randn(recipe.batch_size, student.classes).log_softmax(dim=1)

    def step() -> None:
        student.learn(student.loss(student.forward(images, 0), batch.labels, target).total, 0.01)

    milliseconds(step, device, repeats=WARMUP_STEPS)
    start.wait(READY_S)
    times: list[float] = []
    while finished.value < count:
        times.append(milliseconds(step, device, repeats=BLOCK))
        if len(times) == BLOCKS:
            with finished.get_lock():
                finished.value += 1
    peak = torch.cuda.max_memory_allocated(device) if kind == "cuda" else 0
    return Plain(median(times[:BLOCKS]), peak)


class Cohort(NamedTuple):
    """A cohort's steps: medians of each student's, and the peaks of memory on the GPU."""

    ms: list[float]
    parts: list[dict[str, float]]
    ensemble_ms: float
    peaks: list[int]
    device_bytes: int


def cohort(recipe: Recipe, device: torch.device) -> Cohort:
    """Train with the local launcher, and read what the run recorded."""
    with tempfile.TemporaryDirectory() as storage, _device_memory(device) as used:
        folder = Folder(train(recipe, launcher="local", storage=storage).path)
        rows, placement = read_metrics(folder).to_pylist(), read_record(folder)["placement"]
    times: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["split"] == "train" and row["name"].endswith("_s") and row["step"] >= WARMUP_STEPS:
            times.setdefault((row["student"], row["name"]), []).append(1000 * row["value"])
    found = {key: median(values) for key, values in times.items()}
    return Cohort(
        ms=[found[name, "step_s"] for name in recipe.names],
        parts=[{f"{part[:-2]} ms": found[name, part] for part in PARTS} for name in recipe.names],
        ensemble_ms=found[ENSEMBLE, "ensemble_s"],
        peaks=[placement[name]["peak_memory"] for name in recipe.names],
        device_bytes=max(used) - used[0],
    )


@contextmanager
def _device_memory(device: torch.device) -> Iterator[list[int]]:
    """The bytes in use on a GPU at the beginning and during the block, CUDA's contexts included."""
    used, over = [_used(device)], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            used.append(_used(device))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield used
    finally:
        over.set()
        thread.join()


def _used(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)
