"""Peak memory of a student in a cohort against the same student trained alone in one process.

Alone means this package's `Student` on its own batches: no coordinator, no exchange, a fresh process. The
peak is that of resident memory (VmHWM), in the cohort with the pages that its processes share; the exchange's
buffers, which a student alone does not have, are counted from the message's layout and taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.figures import Figure
from benchmarks.weighed import FOLDER
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.data.dataset import Info
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.exchange.message import MessageLayout
from kdcl_dist.student.student import Student

__all__ = ["figures"]

GOAL = 1.1
MB = 1e6
#: Models of a cohort, and its recipe's further fields; `pixels` is 3 x 64 x 64 noise of 100 classes.
CASTS: dict[str, tuple[tuple[str, str], list[str]]] = {
    "digits": (("cnn_medium", "cnn_small"), []),
    "pixels": (("resnet18", "cnn_small"), ["data.train=pixels.arrow", "data.test=pixels.arrow"]),
}
#: Samples of `pixels`: a few steps show the peak.
SAMPLES = 400


class Memory(NamedTuple):
    """Bytes of one process: peak of its resident memory, and its most private memory at a step."""

    peak: int
    private: int


def measure(cohort: str) -> Iterator[tuple[str, Memory, Memory, int]]:
    """Each student of a cohort: its model, its memory alone and in the cohort, and the exchange's buffers."""
    models, more = CASTS[cohort]
    with _folder() as folder:
        recipe = load_recipe(folder / "recipe.yaml", [*_overrides(models), *more])
        classes = len(TrainingData.open(recipe).train.classes)
        alone = {}
        for index, model in enumerate(models):
            job = get_context("spawn").Process(target=_alone, args=(recipe, index))
            job.start()
            job.join()
            alone[model] = _read(folder, model)
        job = get_context("spawn").Process(target=_together, args=(recipe, folder))
        job.start()
        job.join()
        for model in models:
            yield model, alone[model], _read(folder, model), buffers(recipe, classes)


def buffers(recipe: Recipe, classes: int) -> int:
    """Bytes of a student's end of the exchange: everyone's message, its own, and the answer."""
    ranks = len(recipe.workers) + 1
    return (ranks + 2) * MessageLayout(recipe.batch_size, classes).nbytes


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder to work in, with the digits' recipe and the noise; the environment names it for the notes."""
    examples, before = Path("examples").absolute(), Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = (examples / "digits.yaml").read_text().replace("examples/", f"{examples}/")
        (folder / "recipe.yaml").write_text(text)
        _write_noise(folder / "pixels.arrow")
        os.environ[FOLDER] = name
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def _overrides(models: Sequence[str]) -> list[str]:
    students = ", ".join(f"{{name: {model}, model: 'benchmarks.weighed:{model}'}}" for model in models)
    return [f"students=[{students}]", "data.augment=[]", "epochs=1", "checkpoint.every_epochs=1"]


def _write_noise(path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (3, 64, 64)
    names = tuple(str(number) for number in range(100))
    info = Info(names, "raw", 3, shape, (0.5,) * 3, (0.29,) * 3, "random numbers")
    rows = ((number % 100, rng.integers(0, 256, shape, np.uint8).tobytes()) for number in range(SAMPLES))
    write_dataset(path, rows, info)


def _read(folder: Path, model: str) -> Memory:
    note = folder / f"{model}.json"
    found = Memory(**json.loads(note.read_text()))
    note.unlink()
    return found


def _alone(recipe: Recipe, index: int) -> None:
    """One epoch of one student."""
    torch.set_num_threads(recipe.students[index].resources.cpu)
    training_data = TrainingData.open(recipe)
    classes, channels = len(training_data.train.classes), training_data.train.channels
    student = Student(recipe, index, classes=classes, channels=channels, device=torch.device("cpu"))
    for step, batch in enumerate(training_data.training_batches(index, 0)):
        loss = student.loss(student.forward(batch.images, step), batch.labels, None).total
        student.learn(loss, student.spec.optimizer.lr)


def _together(recipe: Recipe, folder: Path) -> None:
    """One epoch of the cohort by the local launcher."""
    from kdcl_dist.training import train

    train(recipe, launcher="local", storage=str(folder / "runs"))


def figures(quick: bool = False) -> list[Figure]:
    """The ratios of the speed table; quick leaves the large network out."""
    found = []
    for cohort in ["digits"] if quick else list(CASTS):
        for model, alone, together, taken in measure(cohort):
            ratio = (together.peak - taken) / alone.peak
            found.append(Figure("memory", f"{model} on {cohort}, without buffers", ratio, GOAL))
    return found


def report() -> str:
    """The page."""
    lines = [
        "# Memory of a student",
        "",
        "MB of a student trained alone in a process, and of the same student in a cohort of two by the local",
        "launcher. Peak: of resident memory, shared pages included (VmHWM). Private: what no other process",
        "shares, the most at any step. Buffers: what the exchange needs, from the message's layout; they are",
        f"taken off for the ratio. {os.cpu_count()} cores ({platform.machine()}), no GPU, PyTorch",
        f"{torch.__version__}, batches of 64, no augmentation. Made by `python -m benchmarks.memory`.",
        "",
        "The local launcher forks its processes from one that has imported everything. Such a process counts",
        "a page of a library only when it touches it, and shares what it does not change: so the ratio says",
        "what a process takes, not what the exchange adds. On Ray each worker has a server of its own, and",
        "is itself one process more, which does not import torch.",
        "",
        "| student | peak alone | in cohort | buffers | ratio | private alone | in cohort |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cohort in CASTS:
        for model, alone, together, taken in measure(cohort):
            sizes = [alone.peak, together.peak, taken]
            ratio = (together.peak - taken) / alone.peak
            cells = [f"{size / MB:.1f}" for size in sizes] + [f"{ratio:.2f}"]
            cells += [f"{size / MB:.1f}" for size in (alone.private, together.private)]
            lines.append(f"| {model} on {cohort} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the page, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    page = report()
    print(page)
    if arguments.out:
        arguments.out.write_text(page)


if __name__ == "__main__":
    main()
