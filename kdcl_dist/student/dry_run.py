"""A student's dry run: what is wrong with a network or its data is found before the cohort forms.

Shapes: B batch, C classes, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.losses import task_loss
from kdcl_dist.errors import ModelError, of_user_code, one_line
from kdcl_dist.student.student import Student

__all__ = ["check_head", "check_output", "dry_run", "try_step"]


def dry_run(student: Student, training_data: TrainingData, index: int) -> None:
    """Try a student on samples of its data; the student's state does not change.

    Args:
        student: of the run.
        training_data: of the run.
        index: of the student in the recipe.

    Raises:
        ModelError: as `check_output`, `check_head` and `try_step`.
        DataError: the data cannot be read.
    """
    training_data.first_test_views(2)
    images_BCHW = next(training_data.test_batches()).images[:2]
    check_output(student, images_BCHW)
    if student.head is not None:
        check_head(student, student.head, images_BCHW)
    # A replica has as few samples as its share of a batch.
    first = training_data.first_views(index, min(2, student.recipe.batch_size // student.spec.replicas))
    try_step(student, first.images, first.labels)


def check_output(student: Student, images_BCHW: Tensor) -> None:
    """See that the network gives one row of logits for each image; the student's state does not change.

    Raises:
        ModelError: the network raises, or returns something else.
    """
    name, shape = student.spec.model, tuple(images_BCHW.shape)
    fails = of_user_code(ModelError, f"model {name!r} fails on images of shape {shape}", student.spec.name)
    with fails, student.evaluating():
        logits = student.model(student.prepare_images(images_BCHW))
    expected = (len(images_BCHW), student.classes)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != expected:
        raise ModelError(
            f"model {name!r} returns {found} where the data needs logits of shape {expected}: "
            f"{student.classes} classes",
            student=student.spec.name,
        )


def check_head(student: Student, head: str, images_BCHW: Tensor) -> None:
    """See that every logit comes from the layer that starts afresh; the student's state does not change.

    Without that layer's numbers the logits must be the same for all images: else another head gives them.

    Args:
        student: of the run.
        head: the name of the layer.
        images_BCHW: their shape counts; random images of it differ for certain.

    Raises:
        ModelError: another layer, which keeps the weights of the old task, gives a part of the logits.
    """
    generator = torch.Generator().manual_seed(0)
    noise_BCHW = torch.randn((2, *images_BCHW.shape[1:]), generator=generator)
    layer = student.model.get_submodule(head)
    with student.evaluating(), _unchanged(student.model):
        for parameter in layer.parameters():
            parameter.zero_()
        logits_BC = student.model(student.prepare_images(noise_BCHW))
    if not torch.allclose(logits_BC[0], logits_BC[1], rtol=1e-4, atol=1e-5):
        others = [
            path
            for path, other in student.model.named_modules()
            if isinstance(other, nn.Linear) and other.out_features == student.classes and path != head
        ]
        named = ", ".join(map(repr, others)) or "no linear layer"
        raise ModelError(
            f"students.{student.spec.name}.transfer: model {student.spec.model!r} has another head beside "
            f"{head!r} ({named}), which would keep the old task's "
            "weights: give a network whose logits all come from its last torch.nn.Linear",
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
    """Run the passes uncompiled, on the network itself: not every network can be copied."""
    name, shape = student.spec.model, tuple(images_BCHW.shape)
    fails = of_user_code(
        ModelError,
        f"model {name!r} cannot take a training step on images of shape {shape}",
        student.spec.name,
    )
    with fails, _unchanged(student.model):
        student.set_training(student.model, True)
        with student.autocast():
            logits_BC = student.model(student.prepare_images(images_BCHW))
            torch.autograd.backward(task_loss(logits_BC, labels_B.to(student.device)))
        if student.spec.replicas > 1:
            _check_all_used(student)


def _check_all_used(student: Student) -> None:
    """See that every parameter got a gradient: replicas average each, and wait for each."""
    learning = [(path, each) for path, each in student.model.named_parameters() if each.requires_grad]
    if unused := [path for path, each in learning if each.grad is None]:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise ModelError(
            f"students.{student.spec.name}.replicas: a step of model {student.spec.model!r} does not use "
            f"{', '.join(unused[:3])}{more}, and replicas need the gradient of every parameter: remove them, "
            "set their requires_grad to False, or set replicas to 1",
            student=student.spec.name,
        )


@contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Restore a network's tensors, gradients and attributes, and torch's random state, on leaving."""
    tensors = [*network.parameters(), *network.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [parameter.grad for parameter in network.parameters()]
    attributes = [(module, dict(vars(module))) for module in network.modules()]
    devices = {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            for module, found in attributes:
                for name in vars(module).keys() - found.keys():
                    del vars(module)[name]
                vars(module).update(found)
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient


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
