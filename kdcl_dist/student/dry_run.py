"""A student's dry run: what is wrong with a network or its data is found before the cohort forms.

Shapes: B batch, C classes, H W image.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.losses import task_loss
from kdcl_dist.errors import ModelError, one_line
from kdcl_dist.student.student import Student

__all__ = ["check_output", "dry_run", "try_step"]


def dry_run(student: Student, training_data: TrainingData, index: int) -> None:
    """Try a student on samples of its data; the student's state does not change.

    Args:
        student: of the run.
        training_data: of the run.
        index: of the student in the recipe.

    Raises:
        ModelError: as `check_output` and `try_step`.
        DataError: the data cannot be read.
    """
    check_output(student, next(training_data.test_batches()).images[:2])
    first = training_data.first_views(index, 2)
    try_step(student, first.images, first.labels)


def check_output(student: Student, images_BCHW: Tensor) -> None:
    """See that the network gives one row of logits for each image; the student's state does not change.

    Raises:
        ModelError: the network raises, or returns something else.
    """
    name = student.spec.model
    with student.evaluating():
        try:
            logits = student.model(student.prepare_images(images_BCHW))
        except Exception as error:
            shape = tuple(images_BCHW.shape)
            raise ModelError(
                f"model {name!r} fails on images of shape {shape}: {one_line(error)}",
                student=student.spec.name,
            ) from error
    expected = (len(images_BCHW), student.classes)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != expected:
        raise ModelError(
            f"model {name!r} returns {found} where the data needs logits of shape {expected}: "
            f"{student.classes} classes",
            student=student.spec.name,
        )


def try_step(student: Student, images_BCHW: Tensor, labels_B: Tensor) -> None:
    """Run a training step's forward and backward pass, and compile; the student's state does not change.

    Raises:
        ModelError: the network fails in training mode, its loss has no gradient, or the compiler fails.
    """
    if not student.frozen:
        _try_plain(student, images_BCHW, labels_B)
    if student.spec.compile:
        _compile(student, images_BCHW, labels_B)


def _try_plain(student: Student, images_BCHW: Tensor, labels_B: Tensor) -> None:
    """Run the passes on a copy of the network, uncompiled."""
    network = copy.deepcopy(student.model)
    student.set_training(network, True)
    with student.autocast():
        try:
            logits_BC = network(student.prepare_images(images_BCHW))
            torch.autograd.backward(task_loss(logits_BC, labels_B.to(student.device)))
        except Exception as error:  # a user's network can raise anything
            shape = tuple(images_BCHW.shape)
            raise ModelError(
                f"model {student.spec.model!r} cannot take a training step on images of shape {shape}: "
                f"{one_line(error)}",
                student=student.spec.name,
            ) from error


def _compile(student: Student, images_BCHW: Tensor, labels_B: Tensor) -> None:
    """Run the passes of a step in the step's own shape: compilation takes longer than a step may."""
    rows = student.recipe.batch_size // student.spec.replicas
    images_BCHW, labels_B = images_BCHW[:1].repeat(rows, 1, 1, 1), labels_B[:1].repeat(rows)
    for learns in {student.learns(0), student.learns(student.recipe.epochs - 1)}:
        try:
            logits_BC = student.forward(images_BCHW, 0, learns=learns)
            if learns:
                torch.autograd.backward(task_loss(logits_BC, labels_B.to(student.device)))
        except Exception as error:  # the same network has run uncompiled
            raise ModelError(
                f"students.{student.spec.name}.compile: torch.compile fails on model "
                f"{student.spec.model!r} ({one_line(error)}); set it to false",
                student=student.spec.name,
            ) from error
        if learns:
            student.optimizer.zero_grad(set_to_none=True)
            student.undo_forward()
    student.set_training(student.model, not student.frozen)
