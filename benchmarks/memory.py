"""Peak memory of a student in a cohort relative to the same student trained alone in one process.

A student alone is this package's `Student` in a new process, without coordinator and exchange. The peak is
that of resident memory (VmHWM); in the cohort it contains the pages that the processes share. The layout of
the messages gives the size of the exchange's buffers, which a student alone does not have; the ratio leaves
them out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
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
from kdcl_dist.utils.data_specs import DEMO

__all__ = ["figures"]

GOAL = 1.1
MB = 1e6
#: Models of a cohort, and further fields of its recipe; `pixels` is 3 x 64 x 64 noise of 100 classes.
COHORTS: dict[str, tuple[tuple[str, str], list[str]]] = {
    "digits": (("cnn_medium", "cnn_small"), []),
    "pixels": (("resnet18", "cnn_small"), ["data.train=pixels.arrow", "data.test=pixels.arrow"]),
}
#: Samples of `pixels`: a few steps show the peak.
SAMPLES = 400


class Memory(NamedTuple):
    """Bytes of one process: the peak of its resident memory, and the most private memory at any step."""

    peak: int
    private: int


def measure(cohort: str) -> Iterator[tuple[str, Memory, Memory, int]]:
    """For each student its model, its memory alone and in the cohort, and the bytes of its buffers."""
    models, more = COHORTS[cohort]
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
    """Bytes of a student's buffers: the messages of all ranks, its own, and the answer."""
    ranks = len(recipe.workers) + 1
    return (ranks + 2) * MessageLayout(recipe.batch_size, classes).nbytes


@contextmanager
def _folder() -> Iterator[Path]:
    """A working folder with the digits' recipe and the noise; students write their measurements there."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(DEMO / "digits.yaml", folder / "recipe.yaml")
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
    """Train one student for one epoch."""
    torch.set_num_threads(recipe.students[index].resources.cpu)
    training_data = TrainingData.open(recipe)
    classes, channels = len(training_data.train.classes), training_data.channels
    student = Student(recipe, index, classes=classes, channels=channels, device=torch.device("cpu"))
    for step, batch in enumerate(training_data.training_batches(index, 0)):
        loss = student.loss(student.forward(batch.inputs, step), batch.labels, None).total
        student.learn(loss, student.spec.optimizer.lr)


def _together(recipe: Recipe, folder: Path) -> None:
    """Train the cohort for one epoch with the local launcher."""
    from kdcl_dist.training import train

    train(recipe, launcher="local", storage=str(folder / "runs"))


def figures(quick: bool = False) -> list[Figure]:
    """The ratios of the speed table; `quick` leaves the large network out."""
    found = []
    for cohort in ["digits"] if quick else list(COHORTS):
        for model, alone, together, taken in measure(cohort):
            ratio = (together.peak - taken) / alone.peak
            found.append(Figure("memory", f"{model} on {cohort}, without buffers", ratio, GOAL))
    return found


def report() -> str:
    """Measure all cohorts; the page as Markdown."""
    lines = [
        "# Memory of a student",
        "",
        "MB of a student trained alone in a process, and of the same student in a cohort of two on the local",
        "launcher. Peak: of resident memory, shared pages included (VmHWM). Private: the most memory at any",
        "step that no other process shares. Buffers: those of the exchange, by the layout of its messages;",
        f"the ratio leaves them out. {os.cpu_count()} cores ({platform.machine()}), no GPU, PyTorch",
        f"{torch.__version__}, batches of 64, no augmentation. Made by `python -m benchmarks.memory`.",
        "",
        "The local launcher forks its processes from one that has imported all packages. A forked process",
        "counts a page of a library only after the first access, and shares unchanged pages. The ratio so",
        "compares whole processes; it does not isolate the exchange. On Ray each worker has a server of its",
        "own for forks, and is itself one more process, which does not import torch.",
        "",
        "| student | peak alone | in cohort | buffers | ratio | private alone | in cohort |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cohort in COHORTS:
        for model, alone, together, taken in measure(cohort):
            sizes = [alone.peak, together.peak, taken]
            ratio = (together.peak - taken) / alone.peak
            cells = [f"{size / MB:.1f}" for size in sizes] + [f"{ratio:.2f}"]
            cells += [f"{size / MB:.1f}" for size in (alone.private, together.private)]
            lines.append(f"| {model} on {cohort} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the page, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    page = report()
    print(page)
    if arguments.out:
        arguments.out.write_text(page)


if __name__ == "__main__":
    main()
