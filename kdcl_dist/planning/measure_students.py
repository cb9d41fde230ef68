"""Measuring a step of one student alone, on the device of its resources, for several shares of the batch.

Shapes: B samples of one worker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count
from statistics import median

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind
from kdcl_dist.data.loader import Batch
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import ModelError, RecipeError
from kdcl_dist.exchange.message import Message, MessageLayout
from kdcl_dist.planning.processes import run_in_processes, time_steps
from kdcl_dist.planning.step_model import Cost
from kdcl_dist.run.process import set_determinism
from kdcl_dist.student.dry_run import dry_run, random_loss
from kdcl_dist.student.student import Student

__all__ = ["measure_student", "with_replicas"]


def measure_student(recipe: Recipe, index: int, counts: Sequence[int]) -> dict[int, Cost]:
    """The cost of a round for one worker of a student, for each number of replicas.

    Args:
        recipe: the run.
        index: the student's index in the recipe.
        counts: numbers of replicas, each a divisor of the round's samples; the first must fit the device.

    Returns:
        Costs by the number of samples of one worker, without the shares too large for the GPU's memory.

    Raises:
        RecipeError: the student needs a GPU, and this machine has none.
        KdclError: the data, the network or its first step fails.
    """
    student = recipe.students[index]
    if student.resources.gpu_share(auto=0.0) and not torch.cuda.is_available():
        raise RecipeError(
            f"students.{student.name}.resources.gpu: this machine has no GPU to measure on; give the step's "
            f"seconds with --given {student.name}=SECONDS"
        )
    return run_in_processes(_student, [(recipe, index, counts)])[0]


def with_replicas(recipe: Recipe, replicas: Sequence[int]) -> Recipe:
    """The recipe with other numbers of replicas, which must divide the batch size."""
    students = [
        student.model_copy(update={"replicas": number})
        for student, number in zip(recipe.students, replicas, strict=True)
    ]
    return recipe.model_copy(update={"students": students})


# -- in the process ------------------------------------------------------------------------------


def _student(recipe: Recipe, index: int, counts: Sequence[int]) -> dict[int, Cost]:
    torch.set_num_threads(recipe.students[index].resources.cpu)
    set_determinism(recipe.deterministic)
    student, streams = _build(recipe, index, counts)
    message = Message(MessageLayout(recipe.part_size, student.classes))
    # All shares run in turn, so that other load on the machine slows them equally. With loader processes each
    # share runs alone: else these would load for one share while another computes.
    groups = [[rows] for rows in streams] if recipe.data.loader_workers else [list(streams)]
    costs: dict[int, Cost] = {}
    for group in groups:
        in_turn = partial(_steps, student, {rows: streams[rows] for rows in group}, message)
        steps = time_steps(in_turn)
        for rows, own in zip(group, zip(*steps, strict=True), strict=True):
            costs[rows] = Cost(*(median(column) for column in zip(*own, strict=True)))
    return costs


def _build(recipe: Recipe, index: int, counts: Sequence[int]) -> tuple[Student, dict[int, Iterator[Batch]]]:
    """The student, and the batches of its first worker by their size, for each size that fits the device."""
    training_data = TrainingData.open(recipe)
    device = torch.device("cuda" if recipe.students[index].resources.gpu_share(auto=0.0) else "cpu")
    student = Student.of(training_data, index, device=device)
    dry_run(student, training_data, index)
    message = Message(MessageLayout(recipe.part_size, student.classes))
    streams: dict[int, Iterator[Batch]] = {}
    for number in counts:
        replicas = [number if student == index else 1 for student in range(len(recipe.students))]
        stream, rows = _endless(with_replicas(recipe, replicas), index), recipe.part_size // number
        try:
            _step(student, stream, message, 0)
        except torch.cuda.OutOfMemoryError as error:
            if not streams:
                name = student.spec.name
                raise ModelError(
                    f"{rows} samples do not fit the GPU's memory: raise accumulate or students.{name}."
                    "replicas, or lower batch_size",
                    student=name,
                ) from error
            continue
        streams[rows] = stream
    return student, streams


def _endless(recipe: Recipe, index: int) -> Iterator[Batch]:
    training_data = TrainingData.open(recipe)
    return chain.from_iterable(training_data.training_batches(index, 0) for _ in count())


def _steps(
    student: Student, streams: Mapping[int, Iterator[Batch]], message: Message, step: int
) -> list[Cost]:
    return [_step(student, stream, message, step) for stream in streams.values()]


def _step(student: Student, stream: Iterator[Batch], message: Message, step: int) -> Cost:
    """A whole step as in a run, or the last part of one, with a random target in place of the exchange."""
    started = time.perf_counter()
    batch = next(stream)
    loaded = time.perf_counter()
    learns = not student.frozen
    logits_BC = student.forward(batch.inputs, step, learns=learns)
    message.reset(Kind.TRAIN, step)
    message.write_rows(batch.ids, student.contribution(logits_BC, step), batch.labels)
    losses = random_loss(student, logits_BC, batch.loss_labels)
    if learns:
        student.learn(losses.total, student.spec.optimizer.lr, student.recipe.accumulate - 1)
    float(losses.total.detach())  # waits for the GPU
    if student.device.type == "cuda":
        torch.cuda.synchronize()
    return Cost(loaded - started, time.perf_counter() - loaded)
