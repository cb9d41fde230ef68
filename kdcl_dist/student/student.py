"""One student: its network, optimiser, precision and random numbers. No process group, no Ray.

Shapes: B batch, C classes, H W image, P peers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdcl_dist import models
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.sampling import student_seed
from kdcl_dist.distillation.diagnostics import Conflict, conflict
from kdcl_dist.distillation.losses import Losses, dml_loss, kdcl_loss, task_loss
from kdcl_dist.errors import ModelError, one_line
from kdcl_dist.exchange.replicas import Replicas
from kdcl_dist.models.compilation import compiled
from kdcl_dist.models.pretrained import load_weights
from kdcl_dist.models.transfer import freeze_body, head_of, train_head
from kdcl_dist.student.learning_rate import learning_rate
from kdcl_dist.student.optimizer import build_optimizer, load_optimizer
from kdcl_dist.utils.seeding import Purpose, derive

__all__ = ["Student"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Student:
    """One student's part of the algorithm, step by step.

    Everything random in it (initial weights, dropout, noise on its logits) is a pure function of the
    recipe and the step, so its state is the network, the optimiser and the loss scale, nothing else.

    Args:
        recipe: the run.
        index: place in `recipe.students`.
        replica: which of the student's workers this is.
        classes, channels: of the data.
        device: where the network lives.
        resumed: whether a state is loaded next, so that given initial weights are not needed.

    Raises:
        ModelError: the network or its initial weights cannot be built.
    """

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        *,
        replica: int = 0,
        classes: int,
        channels: int,
        device: torch.device,
        resumed: bool = False,
    ) -> None:
        self.recipe, self.spec, self.device, self.classes = recipe, recipe.students[index], device, classes
        self.replica = replica
        self.replicas: Replicas | None = None
        self.seed = student_seed(recipe.seed, index, self.spec.seed)
        self.frozen = recipe.is_teacher(self.spec)
        torch.manual_seed(derive(self.seed, Purpose.INITIAL_WEIGHTS))
        self.model = models.build(self.spec.model, classes, channels)
        self.head = head_of(self.model, self.spec.model, classes) if self.spec.transfer else None
        if self.spec.weights is not None and not resumed:
            load_weights(self.model, self.spec.weights, fresh=self.head)
        if self.head is not None and self.spec.transfer == "probe":
            freeze_body(self.model, self.head)
        self.memory_format = torch.channels_last if self.spec.channels_last else torch.preserve_format
        self.model.to(device).to(memory_format=self.memory_format)
        self._set_training(self.model, not self.frozen)
        # What a step runs, and what it runs if the student learns; tests and checkpoints see `model` itself.
        self.network = compiled(self.model, self.spec.resources.cpu) if self.spec.compile else self.model
        self.training_network = self.network
        self.buffers = list(self.model.buffers())
        self.before = [buffer.clone() for buffer in self.buffers]
        self.optimizer = build_optimizer(self.spec.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.spec.precision == "fp16")
        self.dtype = AUTOCAST.get(self.spec.precision)

    def join(self, replicas: Replicas) -> None:
        """From here on average the gradients with the student's other workers."""
        if self.spec.sync_batchnorm:
            replicas.synchronise_batchnorm(self.model)
        self.replicas = replicas
        if not self.frozen:
            self.training_network = replicas.wrap(self.network)

    def share_buffers(self) -> None:
        """Take the first replica's buffers, such as running statistics, before a test or a checkpoint."""
        if self.replicas is not None:
            self.replicas.share_buffers(self.model)

    @property
    def parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def check_output(self, images_BCHW: Tensor) -> None:
        """See that the network gives one row of logits an image; changes nothing.

        Raises:
            ModelError: it raises, or returns something else.
        """
        with self.evaluating():
            try:
                logits = self.model(self._images(images_BCHW))
            except Exception as error:
                shape = tuple(images_BCHW.shape)
                raise ModelError(
                    f"model {self.spec.model!r} fails on images of shape {shape}: {one_line(error)}",
                    student=self.spec.name,
                ) from error
        expected = (len(images_BCHW), self.classes)
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != expected:
            raise ModelError(
                f"model {self.spec.model!r} returns {found} where the data needs logits of shape {expected}: "
                f"{self.classes} classes",
                student=self.spec.name,
            )

    def learns(self, epoch: int) -> bool:
        """Whether the student learns in an epoch: the teacher never, others until their own last."""
        return not self.frozen and epoch < self.recipe.epochs_of(self.spec)

    def try_step(self, images_BCHW: Tensor, labels_B: Tensor) -> None:
        """Take one training step's forward and backward pass on a copy, and compile; changes nothing.

        Raises:
            ModelError: the network fails in training mode, its loss has no gradient, or the compiler fails.
        """
        if not self.frozen:
            self._try_plainly(images_BCHW, labels_B)
        if self.spec.compile:
            self._compile(images_BCHW, labels_B)

    def _try_plainly(self, images_BCHW: Tensor, labels_B: Tensor) -> None:
        network = copy.deepcopy(self.model)
        self._set_training(network, True)
        with self._autocast():
            try:
                logits = network(self._images(images_BCHW))
                torch.autograd.backward(task_loss(logits, labels_B.to(self.device)))
            except Exception as error:  # a user's network can raise anything
                shape = tuple(images_BCHW.shape)
                raise ModelError(
                    f"model {self.spec.model!r} cannot take a training step on images of shape {shape}: "
                    f"{one_line(error)}",
                    student=self.spec.name,
                ) from error

    def _compile(self, images_BCHW: Tensor, labels_B: Tensor) -> None:
        """Run all that a step will run, in its own shape: a compiler takes longer than a step may."""
        rows = self.recipe.batch_size // self.spec.replicas
        images_BCHW, labels_B = images_BCHW[:1].repeat(rows, 1, 1, 1), labels_B[:1].repeat(rows)
        for learns in {self.learns(0), self.learns(self.recipe.epochs - 1)}:
            try:
                logits_BC = self.forward(images_BCHW, 0, learns=learns)
                if learns:
                    torch.autograd.backward(task_loss(logits_BC, labels_B.to(self.device)))
            except Exception as error:  # the same network has run uncompiled
                raise ModelError(
                    f"students.{self.spec.name}.compile: torch.compile fails on model {self.spec.model!r} "
                    f"({one_line(error)}); set it to false",
                    student=self.spec.name,
                ) from error
            if learns:
                self.optimizer.zero_grad(set_to_none=True)
                self.forget_step()
        self._set_training(self.model, not self.frozen)

    def forward(self, images_BCHW: Tensor, step: int, *, learns: bool = True) -> Tensor:
        """The logits (B, C) of one training step, float32; with gradient if the student learns from it.

        A student that does not learn sees the step as it would a test: in evaluation mode.
        """
        if self.model.training != learns:
            self._set_training(self.model, learns)
        torch.manual_seed(self._draw(Purpose.STEP, step))
        images_BCHW = self._images(images_BCHW)
        network = self.training_network if learns else self.network
        if learns and self.buffers:
            torch._foreach_copy_(self.before, self.buffers)
        with torch.set_grad_enabled(learns), self._autocast():
            logits_BC: Tensor = network(images_BCHW)
        return logits_BC.float()

    def forget_step(self) -> None:
        """Undo what a forward pass left in the network's buffers, such as running statistics of NaN."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.before)

    def contribution(self, logits_BC: Tensor, step: int) -> Tensor:
        """What the others learn from: the logits without gradient, with noise if the recipe asks for it."""
        logits_BC = logits_BC.detach()
        if (deviation := self.recipe.distillation.logit_noise) == 0:
            return logits_BC
        generator = torch.Generator().manual_seed(self._draw(Purpose.LOGIT_NOISE, step))
        noise_BC = torch.randn(logits_BC.shape, generator=generator)
        return logits_BC + deviation * self._moved(noise_BC)

    def loss(
        self, logits_BC: Tensor, labels_B: Tensor, target: Tensor | None, covered_B: Tensor | None = None
    ) -> Losses:
        """The loss of the recipe's method.

        Args:
            logits_BC: of `forward`.
            labels_B: the classes.
            target: by method: "none" nothing; "dml" the peers' log-probabilities at T = 1, (P, B, C);
                all others the log-probabilities of the soft target at the recipe's temperature, (B, C).
            covered_B: which samples have a soft target, where not all have; see `distillation_loss`.
        """
        distillation = self.recipe.distillation
        labels_B = self._moved(labels_B)
        if target is None:
            task = task_loss(logits_BC, labels_B)
            return Losses(task, task, torch.zeros_like(task))
        target = self._moved(target)
        if distillation.method == "dml":
            return dml_loss(logits_BC, labels_B, target, distillation.weight)
        # StepMetrics of rows, found here: to find them in a mask the host would wait for the GPU.
        covered_K = None if covered_B is None else self._moved(covered_B.nonzero()[:, 0])
        temperature, weight = distillation.temperature, distillation.weight
        return kdcl_loss(logits_BC, labels_B, target, temperature, weight, covered_K)

    def conflict(self, losses: Losses) -> Conflict:
        """How the step's two gradients stand to each other; changes nothing."""
        average = self.replicas.average if self.replicas is not None else None
        return conflict(losses, self.recipe.distillation.weight, self.model, self.scaler.scale, average)

    def learn(self, loss: Tensor, lr: float) -> Tensor:
        """One step of the optimiser on a loss, which is left out if the gradient is not finite.

        Returns whether it was left out, as 0 or 1. A loss scale is too large now and then, and leaves out a
        step itself: that counts as 0.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return torch.zeros_like(loss)
        bad = self._is_bad()
        if self.optimizer.defaults["fused"]:  # it skips the step by itself: the host need not wait for a GPU
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif self.device.type == "cpu" and bad:
            return bad
        self.optimizer.step()
        return bad

    def _is_bad(self) -> Tensor:
        """Whether the gradient is not finite, as 0 or 1; replicas have the same, and so agree."""
        (group,) = self.optimizer.param_groups
        gradients = [each.grad for each in group["params"] if each.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).sum()
        return (~torch.isfinite(norm)).float()

    def lr(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, a pure function of the recipe."""
        return learning_rate(
            self.spec.schedule,
            self.spec.optimizer.lr,
            step=step,
            steps_per_epoch=steps_per_epoch,
            epochs=self.recipe.epochs_of(self.spec),
        )

    def predict(self, images_BCHW: Tensor) -> Tensor:
        """The logits (B, C) in evaluation mode, float32, without gradient; B may be 0."""
        if not len(images_BCHW):
            return torch.empty(0, self.classes)
        with self.evaluating(), self._autocast():
            logits_BC: Tensor = self.model(self._images(images_BCHW))
        return logits_BC.float()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; the mode before is back afterwards, whatever happens."""
        before = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._set_training(self.model, before)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed student needs; `model` loads strictly into the plain network."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of `state_dict`."""
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def _set_training(self, network: nn.Module, training: bool) -> None:
        network.train(training)
        if training and self.head is not None and self.spec.transfer == "probe":
            train_head(network, self.head)

    def _draw(self, purpose: Purpose, step: int) -> int:
        """The seed of what is random in a step; the first replica draws as a student without replicas."""
        return derive(self.seed, purpose, *((step, self.replica) if self.replica else (step,)))

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the student's device, without waiting for it.

        From memory that is not pinned a copy to a GPU waits until that has done all that it was given.
        """
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _images(self, images_BCHW: Tensor) -> Tensor:
        return self._moved(images_BCHW).to(memory_format=self.memory_format)
