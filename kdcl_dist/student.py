"""One student: its network, optimiser, precision and random numbers. No process group, no Ray.

Shapes: B batch, C classes, H W image, P peers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcl_dist import models
from kdcl_dist import optimisation as specs
from kdcl_dist.analysis import Conflict, conflict
from kdcl_dist.data.streams import student_seed
from kdcl_dist.errors import ModelError, one_line
from kdcl_dist.losses import Losses, dml_loss, kdcl_loss, task_loss
from kdcl_dist.recipe import Recipe
from kdcl_dist.replicas import Replicas
from kdcl_dist.schedules import learning_rate
from kdcl_dist.seeding import Purpose, derive
from kdcl_dist.transfer import freeze_body, head_of, train_head

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
        self._set_training(self.model.to(device), not self.frozen)
        self.training_model: nn.Module = self.model
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
            self.training_model = replicas.wrap(self.model)

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
                logits = self.model(images_BCHW.to(self.device))
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
        """Take one training step's forward and backward pass on a copy; changes nothing.

        Raises:
            ModelError: the network fails in training mode, or its loss has no gradient.
        """
        if self.frozen:
            return
        network = copy.deepcopy(self.model)
        self._set_training(network, True)
        with self._autocast():
            try:
                logits = network(images_BCHW.to(self.device))
                torch.autograd.backward(task_loss(logits, labels_B.to(self.device)))
            except Exception as error:  # a user's network can raise anything
                shape = tuple(images_BCHW.shape)
                raise ModelError(
                    f"model {self.spec.model!r} cannot take a training step on images of shape {shape}: "
                    f"{one_line(error)}",
                    student=self.spec.name,
                ) from error

    def forward(self, images_BCHW: Tensor, step: int, *, learns: bool = True) -> Tensor:
        """The logits (B, C) of one training step, float32; with gradient if the student learns from it.

        A student that does not learn sees the step as it would a test: in evaluation mode.
        """
        if self.model.training != learns:
            self._set_training(self.model, learns)
        torch.manual_seed(self._draw(Purpose.STEP, step))
        images_BCHW = images_BCHW.to(self.device, non_blocking=True)
        network = self.training_model if learns else self.model
        if learns and self.buffers:
            torch._foreach_copy_(self.before, self.buffers)
        with torch.set_grad_enabled(learns), self._autocast():
            logits_BC: Tensor = network(images_BCHW)
        return logits_BC.float()

    def forget_step(self) -> None:
        """Undo what a forward pass left in the network's buffers, such as running statistics of NaN."""
        with torch.no_grad():
            for buffer, before in zip(self.buffers, self.before, strict=True):
                buffer.copy_(before)

    def contribution(self, logits_BC: Tensor, step: int) -> Tensor:
        """What the others learn from: the logits without gradient, with noise if the recipe asks for it."""
        logits_BC = logits_BC.detach()
        if (deviation := self.recipe.distillation.logit_noise) == 0:
            return logits_BC
        generator = torch.Generator().manual_seed(self._draw(Purpose.LOGIT_NOISE, step))
        noise_BC = torch.randn(logits_BC.shape, generator=generator)
        return logits_BC + deviation * noise_BC.to(self.device)

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
        labels_B = labels_B.to(self.device, non_blocking=True)
        if target is None:
            task = task_loss(logits_BC, labels_B)
            return Losses(task, task, torch.zeros_like(task))
        target = target.to(self.device, non_blocking=True)
        if distillation.method == "dml":
            return dml_loss(logits_BC, labels_B, target, distillation.weight)
        covered_B = covered_B if covered_B is None else covered_B.to(self.device, non_blocking=True)
        temperature, weight = distillation.temperature, distillation.weight
        return kdcl_loss(logits_BC, labels_B, target, temperature, weight, covered_B)

    def conflict(self, losses: Losses) -> Conflict:
        """How the step's two gradients stand to each other; changes nothing."""
        average = self.replicas.average if self.replicas is not None else None
        return conflict(losses, self.recipe.distillation.weight, self.model, self.scaler.scale, average)

    def learn(self, loss: Tensor, lr: float) -> None:
        """One step of the optimiser on a loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.step(self.optimizer)
        self.scaler.update()

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
            logits_BC: Tensor = self.model(images_BCHW.to(self.device, non_blocking=True))
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
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def _set_training(self, network: nn.Module, training: bool) -> None:
        network.train(training)
        if training and self.head is not None and self.spec.transfer == "probe":
            train_head(network, self.head)

    def _draw(self, purpose: Purpose, step: int) -> int:
        """The seed of what is random in a step; the first replica draws as a student without replicas."""
        return derive(self.seed, purpose, *((step, self.replica) if self.replica else (step,)))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def build_optimizer(spec: specs.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a recipe over all parameters of a network."""
    parameters = list(model.parameters())
    if isinstance(spec, specs.SGD):
        return torch.optim.SGD(
            parameters,
            lr=spec.lr,
            momentum=spec.momentum,
            nesterov=spec.nesterov,
            weight_decay=spec.weight_decay,
        )
    kind = torch.optim.AdamW if isinstance(spec, specs.AdamW) else torch.optim.Adam
    betas = (spec.beta1, spec.beta2)
    return kind(parameters, lr=spec.lr, betas=betas, eps=spec.eps, weight_decay=spec.weight_decay)


def load_weights(model: nn.Module, path: str, fresh: str | None = None) -> None:
    """Load a state_dict, or the `model` entry of a checkpoint's student part, strictly.

    Args:
        model: the network.
        path: the file.
        fresh: a layer that keeps its own weights, whatever the file has for it.

    Raises:
        ModelError: the file is missing, holds more than tensors, or does not fit the network.
    """
    try:
        state = torch.load(Path(path), map_location="cpu", weights_only=True)
        state = state.get("model", state)
        if fresh is not None:
            own = model.get_submodule(fresh).state_dict(prefix=f"{fresh}.")
            state = {name: value for name, value in state.items() if name not in own} | own
        missing, unexpected = model.load_state_dict(state, strict=False)
    except OSError as error:
        raise ModelError(f"weights {path!r} cannot be read: {one_line(error)}") from error
    except RuntimeError as error:  # its second line names the first parameter of another shape
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:2]) or one_line(error)
        raise ModelError(f"weights {path!r} do not fit {type(model).__name__}: {reason}") from error
    except Exception as error:  # whatever a file from outside can raise
        raise ModelError(
            f"weights {path!r} are not a file of torch.save(model.state_dict()) with tensors only "
            f"({type(error).__name__})"
        ) from error
    if missing or unexpected:
        shown = [f"without {name}" for name in missing] + [
            f"with {name}, unknown there" for name in unexpected
        ]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        raise ModelError(f"weights {path!r} do not fit {type(model).__name__}: {'; '.join(shown[:3])}{more}")
