"""A student's rehearsal: what is wrong with a network or its data is found before the cohort forms.

It takes the passes of a run on the student's own device and network, in the run's own sizes.

Shapes: B batch, C classes, P peers.
"""

from __future__ import annotations

import copy
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.data.probes import first_test_views, first_views, probes
from kdcl_dist.data.samples import Inputs, described, forward, map_tensors, rows
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.losses import Losses
from kdcl_dist.distillation.methods import Context
from kdcl_dist.errors import ModelError, of_user_code
from kdcl_dist.exchange.replicas import Replicas
from kdcl_dist.student.optimizer import build_optimizer
from kdcl_dist.student.snapshot import Snapshot
from kdcl_dist.student.step_tape import Lesson, StepTape
from kdcl_dist.student.student import Student
from kdcl_dist.student.verification import compute_again, listed, tolerance_of
from kdcl_dist.utils.random_state import random_state_kept

__all__ = ["check_head", "check_output", "dry_run", "random_loss", "try_step"]


def dry_run(student: Student, training_data: TrainingData, index: int) -> int:
    """Rehearse a student's passes; neither its state nor that of random generators changes.

    These are a step on its share of the run's first batch, made by a loader process if the run has such, and
    tests in the sizes of test batches.

    Args:
        student: of the run.
        training_data: of the run.
        index: of the student in the recipe.

    Returns:
        The peak in bytes: on a GPU of what the rehearsal allocates, else of this process's resident memory.

    Raises:
        ModelError: as `check_output`, `check_head` and `try_step`.
        DataError: the data cannot be read, or is none that a network can learn from.
    """
    if student.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(student.device)
    known = {path for path, _ in student.model.named_parameters()}
    with random_state_kept(), _unchanged(student.model):
        first_views(training_data, index, 2)
        check_output(student, first_test_views(training_data, 2).inputs)  # before a whole batch is loaded
        first = training_data.first_batch(index, student.replica)
        for where, inputs in probes(training_data, index):
            check_output(student, inputs, where)
        if student.head is not None:
            check_head(student, student.head, first.inputs)
        try_step(student, first.inputs, first.loss_labels)
    _check_parameters(student, known)
    if student.device.type == "cuda":
        return torch.cuda.max_memory_allocated(student.device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _check_parameters(student: Student, known: set[str]) -> None:
    """See that no pass has made parameters, of which the optimiser does not know."""
    if made := [path for path, _ in student.model.named_parameters() if path not in known]:
        raise ModelError(
            f"model {student.spec.model!r} makes parameters in its first pass ({made[0]}), which would never "
            "be trained: make them in its constructor, or use lazy layers such as torch.nn.LazyLinear",
            student=student.spec.name,
        )


def check_output(student: Student, inputs: Inputs, where: str = "") -> None:
    """See that the network gives one row of logits for each sample; the student's state does not change.

    Args:
        student: of the run.
        inputs: a batch.
        where: from where it is, for the error message.

    Raises:
        ModelError: the network raises, or returns something else.
    """
    name, source = student.spec.model, f" ({where})" if where else ""
    fails = _fails(student, rows(inputs), f"model {name!r} fails on {described(inputs)}{source}")
    with fails, student.evaluating(), student.autocast():
        logits = forward(student.model, student.prepare(inputs))
    expected = (rows(inputs), student.classes)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != expected:
        raise ModelError(
            f"model {name!r} returns {found} where the data needs logits of shape {expected}{source}: "
            f"{student.classes} classes",
            student=student.spec.name,
        )


def check_head(student: Student, head: str, inputs: Inputs) -> None:
    """See that every logit comes from the layer that starts afresh; the student's state does not change.

    Without that layer's numbers the logits must be the same for all samples: else another head gives them.

    Args:
        student: of the run.
        head: the name of the layer.
        inputs: a batch; random numbers take the place of those with fractions, and differ for certain.

    Raises:
        ModelError: another layer, which keeps the weights of the old task, gives a part of the logits.
    """
    generator = torch.Generator().manual_seed(0)

    def two_rows(tensor: Tensor) -> Tensor:
        """Noise; of whole numbers, which may be indices, the first and the last row."""
        if not tensor.is_floating_point():
            return tensor[[0, -1]]
        return torch.randn((2, *tensor.shape[1:]), generator=generator)

    layer = student.model.get_submodule(head)
    with student.evaluating(), _unchanged(student.model):
        for parameter in layer.parameters():
            parameter.zero_()
        logits_BC = forward(student.model, student.prepare(map_tensors(inputs, two_rows)))
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


def try_step(student: Student, inputs: Inputs, labels_B: Tensor) -> None:
    """Take a training step as in a run, optimiser and analysis included, alone and as the only replica.

    The student's state does not change, but its passes are compiled: that takes longer than a step may.

    Raises:
        ModelError: the network fails in training mode, its loss has no gradient, or the compiler fails.
    """
    spec, count, passes = student.spec, rows(inputs), student.network
    step, model = partial(_step, student, inputs, labels_B), f"model {spec.model!r}"
    share = f"{described(inputs)}{_hint(student, count)}"
    with _rehearsing(student):
        student.network = student.training_network = student.model
        if not spec.sync_batchnorm or spec.replicas == 1:  # else one share alone may be too small
            with _fails(student, count, f"{model} cannot take a training step on {share}"):
                step()
        if student.compiles:
            student.network = student.training_network = passes
            field = f"students.{spec.name}.compile: " if spec.compile else ""
            remedy = "set it to false" if spec.compile else "build it without torch.compile"
            whole_B = torch.arange(student.recipe.part_size // spec.replicas) % count  # no other shape is met
            with _fails(student, count, f"{field}torch.compile fails on {model}, {remedy}"):
                _step(student, map_tensors(inputs, lambda tensor: tensor[whole_B]), labels_B[whole_B])
        if spec.replicas > 1:
            with _fails(student, count, f"students.{spec.name}.replicas: {model} cannot learn as replicas"):
                student.join(Replicas.alone(student.device))
                step()
        if student.recipe.failure.verify_every_steps and student.learns(0):
            _compare_steps(student, inputs, labels_B)


def _hint(student: Student, rows: int) -> str:
    """What makes a share of a single sample, which layers such as batch norm refuse."""
    if rows > 1:
        return ""
    replicas = student.spec.replicas
    fields = f" or lower students.{student.spec.name}.replicas ({replicas})" if replicas > 1 else ""
    fields += f" or accumulate ({student.recipe.accumulate})" if student.recipe.accumulate > 1 else ""
    return f" (one sample: raise batch_size ({student.recipe.batch_size}){fields})"


def random_loss(student: Student, logits_BC: Tensor, labels_B: Tensor) -> Losses:
    """The loss of the recipe's method with random logits of the others.

    Raises:
        MethodError: a loss of the user's own cannot be loaded, or fails.
    """
    return student.loss(logits_BC, *_random_lesson(student, labels_B))


def _random_lesson(student: Student, labels_B: Tensor) -> Lesson:
    """What a student learns from, with random logits of the others."""
    distillation, rows, target = student.recipe.distillation, len(labels_B), None
    peers = tuple(name for name in student.recipe.names if name != student.spec.name)
    if distillation.peers and peers:
        target = torch.randn(len(peers), rows, student.classes)
    elif distillation.sends_target:
        target = F.log_softmax(torch.randn(rows, student.classes), dim=1)
    context = Context(students=peers, student=student.spec.name)
    return Lesson(labels_B, target, None, context)


def _compare_steps(student: Student, inputs: Inputs, labels_B: Tensor) -> None:
    """See that a step that is computed twice gives the same: else silent corruption could not be told apart.

    Raises:
        ModelError: it does not.
    """
    before, tape, lr = Snapshot(student), StepTape(student), student.spec.optimizer.lr
    for part in range(student.recipe.accumulate):
        tape.begin(Round(Kind.TRAIN, 0, 0, part), inputs, learns=True)
        logits_BC = student.forward(inputs, 0, part)
        lesson = _random_lesson(student, labels_B)
        tape.keep(lesson)
        losses = student.loss(logits_BC, *lesson)
        if student.loss.paused:  # nothing is learned from these random logits
            return
        skipped = student.learn(losses.total, lr, part)
        sent_BC = student.contribution(logits_BC, 0, part)
        tape.end(logits_BC, sent_BC, torch.stack([*losses, skipped]).detach())
    if found := compute_again(tape, before, lr, tolerance_of(student))[1]:
        raise ModelError(
            f"failure.verify_every_steps: {student.recipe.failure.verify_every_steps}, but model "
            f"{student.spec.model!r} or its optimizer gives other numbers when a step is computed again "
            f"({listed(found)}): set it to 0",
            student=student.spec.name,
        )


def _step(student: Student, inputs: Inputs, labels_B: Tensor) -> None:
    """The first and the last part of a step, in each mode that the student has in the run."""
    parts = () if student.frozen else {0, student.recipe.accumulate - 1}
    for part in sorted(parts):
        logits_BC = student.forward(inputs, 0, part)
        losses = random_loss(student, logits_BC, labels_B)
        if student.recipe.analysis.every_steps and losses.distillation.requires_grad:
            every = f"analysis.every_steps: {student.recipe.analysis.every_steps}"
            what = f"{every}: model {student.spec.model!r} cannot take a second backward pass, set it to 0"
            with _fails(student, len(labels_B), what):
                student.conflict(losses)
        student.learn(losses.total, student.spec.optimizer.lr, part)
    if not student.learns((student.spec.until_epoch or student.recipe.epochs) - 1):
        student.forward(inputs, 0, learns=False)


@contextmanager
def _fails(student: Student, rows: int, what: str) -> Iterator[None]:
    """Whatever a pass raises as a user's mistake, and a lack of memory with the fields that decide on it."""
    try:
        with of_user_code(ModelError, what, student.spec.name):
            yield
    except ModelError as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"{rows} samples do not fit the GPU's memory: raise accumulate or students.{student.spec.name}."
            f"replicas, or lower batch_size (it is {student.recipe.batch_size})",
            student=student.spec.name,
        ) from error.__cause__


@contextmanager
def _rehearsing(student: Student) -> Iterator[None]:
    """Give the student an optimiser and a loss scale to try, and restore all of it on leaving."""
    kept = dict(vars(student))
    try:
        averages = student.average.tensors.values() if student.average else ()
        with _unchanged(student.model, averages):
            student.average = copy.copy(student.average)
            if not student.frozen:
                student.optimizer = build_optimizer(student.spec.optimizer, student.model)
            student.scaler = torch.amp.GradScaler(student.device.type, enabled=student.scaler.is_enabled())
            yield
    finally:
        vars(student).update(kept)


@contextmanager
def _unchanged(network: nn.Module, others: Iterable[Tensor] = ()) -> Iterator[None]:
    """Restore a network's tensors, gradients and attributes, others, and torch's random state, on leaving."""
    tensors = [*network.parameters(), *network.buffers(), *others]
    values = [tensor.detach().to("cpu", copy=True) for tensor in tensors]  # the device may be full
    gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
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
            for parameter, gradient in gradients:
                parameter.grad = gradient
