"""One student: its network, optimiser, precision and random numbers. No process group, no Ray.

Shapes: B batch, C classes, P peers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdcl_dist.config.model import Model
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.probes import first_views
from kdcl_dist.data.samples import Inputs, forward, map_tensors, rows
from kdcl_dist.data.sampling import student_seed
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.diagnostics import Conflict, conflict
from kdcl_dist.distillation.losses import Losses
from kdcl_dist.errors import ModelError, of_user_code
from kdcl_dist.exchange.replicas import Replicas, summing_gradients
from kdcl_dist.models.compilation import compiled, keep_graphs
from kdcl_dist.models.registry import BUILT_IN
from kdcl_dist.models.transfer import train_head
from kdcl_dist.student.ema import AveragedWeights
from kdcl_dist.student.gradient import apply_gradient, is_bad
from kdcl_dist.student.initial_network import initial_network
from kdcl_dist.student.learning_rate import learning_rate
from kdcl_dist.student.optimizer import build_optimizer, load_optimizer
from kdcl_dist.student.student_loss import StudentLoss
from kdcl_dist.utils.devices import to_device
from kdcl_dist.utils.random_state import seed_torch
from kdcl_dist.utils.seeding import Purpose, derive

__all__ = ["Student"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Student:
    """One student's part of the algorithm, step by step.

    All random numbers (initial weights, dropout, noise on the logits) are pure functions of the recipe and
    the step. So the student's state is the network, its average, the optimiser and the loss scale.

    Args:
        recipe: the run.
        index: of the student in `recipe.students`.
        replica: index of this process among the student's workers.
        classes: of the data.
        channels: of its images; None: its samples are no images.
        device: of the network.
        resumed: whether a state is loaded next, so that the recipe's initial weights are not needed.
        trains: whether a student that is not frozen gets its optimiser, which may be the user's own code.
        example: gives a few samples of the student's; a network with lazy layers needs it.

    Raises:
        ModelError: the network, its initial weights or its optimiser cannot be built.
    """

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        *,
        replica: int = 0,
        classes: int,
        channels: int | None,
        device: torch.device,
        resumed: bool = False,
        trains: bool = True,
        example: Callable[[], Inputs] | None = None,
    ) -> None:
        self.recipe, self.spec, self.device, self.classes = recipe, recipe.students[index], device, classes
        self.replica = replica
        self.replicas: Replicas | None = None
        self.loss = StudentLoss(recipe.distillation, self.spec, device)
        self.seed = student_seed(recipe.seed, index, self.spec.seed)
        self._drawn = (-1, -1), 0  # a part of a step, and its seed
        self.frozen = recipe.is_frozen(self.spec)
        keep_graphs()
        self.model, self.head, self.compiles = initial_network(
            self.spec, self.seed, classes, channels, example, resumed=resumed
        )
        self.memory_format = self._memory_format(channels)
        self.model.to(device).to(memory_format=self.memory_format)
        self.set_training(self.model, not self.frozen)
        self.average = AveragedWeights(self.spec.ema, self.model) if self.spec.ema else None
        # A step runs `network`, or `training_network` if the student learns; all else uses `model`.
        self.network = compiled(self.model, self.spec.resources.cpu) if self.compiles else self.model
        self.training_network = self.network
        self.buffers = list(self.model.buffers())
        self.saved_buffers = [buffer.clone() for buffer in self.buffers]
        if trains and not self.frozen:
            self.optimizer = self._built_optimizer()
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.spec.precision == "fp16")
        self.dtype = AUTOCAST.get(self.spec.precision)

    @classmethod
    def of(
        cls,
        training_data: TrainingData,
        index: int,
        *,
        replica: int = 0,
        device: torch.device,
        resumed: bool = False,
        trains: bool = True,
    ) -> Student:
        """A student of a run whose data is open; other arguments and errors as of the class."""
        student = cls(
            training_data.recipe,
            index,
            replica=replica,
            classes=len(training_data.train.classes),
            channels=training_data.channels,
            device=device,
            resumed=resumed,
            trains=trains,
            example=lambda: first_views(training_data, index, 2).inputs,
        )
        student.loss.learn_from(training_data, index)
        return student

    def _memory_format(self, channels: int | None) -> torch.memory_format:
        if self.spec.channels_last and channels is None:
            raise ModelError(
                f"students.{self.spec.name}.channels_last: true is for images, and the data's samples are "
                "none: set it to false",
                student=self.spec.name,
            )
        return torch.channels_last if self.spec.channels_last else torch.preserve_format

    def _built_optimizer(self) -> torch.optim.Optimizer:
        chosen = self.spec.optimizer
        fails = f"optimizer {chosen.name!r} cannot train model {self.spec.model!r}"
        with of_user_code(ModelError, fails, self.spec.name):
            return build_optimizer(chosen, self.model)

    def join(self, replicas: Replicas) -> None:
        """Average the gradients with the student's other workers from now on."""
        if self.spec.sync_batchnorm:
            replicas.synchronise_batchnorm(self.model)
        self.replicas = replicas
        if not self.frozen:
            # A network of the user's may use other parameters from step to step.
            self.training_network = replicas.wrap(
                self.network, all_used=Model.of(self.spec.model).name in BUILT_IN
            )

    def share_buffers(self) -> None:
        """Copy the first replica's buffers, such as running statistics, before a test or a checkpoint."""
        if self.replicas is not None:
            averages = self.average.buffers(self.model) if self.average else []
            self.replicas.share([*self.model.buffers(), *averages])

    @property
    def parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def learns(self, epoch: int) -> bool:
        """Whether the student learns in an epoch."""
        return self.recipe.learns(self.spec, epoch)

    def forward(self, inputs: Inputs, step: int, part: int = 0, *, learns: bool = True) -> Tensor:
        """The logits (B, C) of a part of a training step, float32; with gradient if the student learns.

        A student that does not learn runs the step in evaluation mode, without gradient.
        """
        if self.model.training != learns:
            self.set_training(self.model, learns)
        if learns and part == 0:
            self.optimizer.zero_grad(set_to_none=True)
        seed_torch(self.seed_of(step, part), self.device)
        inputs = self.prepare(inputs)
        network = self.training_network if learns else self.network
        if learns and self.buffers and part == 0:
            torch._foreach_copy_(self.saved_buffers, self.buffers)
        # Replicas average the sum of all parts' gradients, in the backward pass of the last.
        summing = self.replicas is not None and learns and part + 1 < self.recipe.accumulate
        with (
            summing_gradients(network) if summing else nullcontext(),
            torch.set_grad_enabled(learns),
            self.autocast(),
        ):
            logits_BC: Tensor = forward(network, inputs)
        return logits_BC.float()

    def undo_forward(self) -> None:
        """Restore the buffers, such as running statistics, to their values before the step."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.saved_buffers)

    def contribution(self, logits_BC: Tensor, step: int, part: int = 0) -> Tensor:
        """The logits that the student sends: without gradient, with noise if the recipe sets it."""
        logits_BC = logits_BC.detach()
        if (deviation := self.recipe.distillation.logit_noise) == 0:
            return logits_BC
        generator = torch.Generator().manual_seed(self._draw(Purpose.LOGIT_NOISE, step, part))
        noise_BC = torch.randn(logits_BC.shape, generator=generator)
        return logits_BC + deviation * to_device(noise_BC, self.device)

    def conflict(self, losses: Losses) -> Conflict:
        """Cosine and ratio of the step's two gradients; the student's state does not change."""
        average = self.replicas.average if self.replicas is not None else None
        return conflict(losses, self.recipe.distillation.weight, self.model, self.scaler.scale, average)

    def learn(self, loss: Tensor, lr: float, part: int = 0) -> Tensor:
        """Add the gradient of a part of a step; after the last part let the optimiser and the average step.

        The parts have equally many samples, so the mean of their losses is that of the step. The step is
        skipped if its gradient is not finite.

        Returns 1 if the step was skipped, else 0. A skip by the loss scale, which is too large now and then,
        counts as 0.
        """
        self.add_gradient(loss)
        return self.end_part(lr, part)

    def add_gradient(self, loss: Tensor) -> None:
        """Add the gradient of a part of a step: the first half of `learn`."""
        if self.recipe.accumulate > 1:
            loss = loss / self.recipe.accumulate
        torch.autograd.backward(self.scaler.scale(loss))

    def end_part(self, lr: float, part: int = 0) -> Tensor:
        """The second half of `learn`, which returns its result."""
        ends = part + 1 == self.recipe.accumulate
        return self._step(lr) if ends else torch.zeros((), device=self.device)

    def _step(self, lr: float) -> Tensor:
        """One step of the optimiser on the gradient, and of the average; the result is that of `learn`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        scaled, nothing = self.scaler.is_enabled(), torch.zeros((), device=self.device)
        bad = is_bad(self.model) if self.average or not scaled else nothing
        apply_gradient(self.model, self.optimizer, self.scaler, bad, self.spec.clip_grad_norm)
        if self.average is not None:
            self.average.update(self.model, bad)
        return nothing if scaled else bad

    def lr(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, a pure function of the recipe: the schedule begins as the student."""
        return learning_rate(
            self.spec.schedule,
            self.spec.optimizer.lr,
            step=step - (self.spec.from_epoch - 1) * steps_per_epoch,
            steps_per_epoch=steps_per_epoch,
            epochs=self.recipe.epochs_of(self.spec),
        )

    def predict(self, inputs: Inputs, *, averaged: bool = False) -> Tensor:
        """The logits (B, C) in evaluation mode, float32, without gradient; B may be 0.

        With `averaged` they are those of the averaged weights, if the student has such. A row with NaN or
        infinite logits is no answer: it becomes the same logit for every class.
        """
        if not rows(inputs):
            return torch.empty(0, self.classes)
        average = self.average.applied(self.model) if averaged and self.average else nullcontext()
        with average, self.evaluating(), self.autocast():
            logits_BC: Tensor = forward(self.model, self.prepare(inputs)).float()
        return logits_BC.where(logits_BC.isfinite().all(dim=1, keepdim=True), 0.0)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; the previous mode is restored, also after an exception."""
        before = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.set_training(self.model, before)

    def set_training(self, network: nn.Module, training: bool) -> None:
        """Set the mode of the network or a copy; with `transfer: probe` only the head trains."""
        network.train(training)
        if training and self.head is not None and self.spec.transfer == "probe":
            train_head(network, self.head)

    def autocast(self) -> AbstractContextManager[object]:
        """The recipe's precision for a forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def prepare(self, inputs: Inputs) -> Inputs:
        """A batch on the student's device, images in the network's memory format."""
        return map_tensors(
            inputs, lambda tensor: to_device(tensor, self.device).to(memory_format=self.memory_format)
        )

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed student needs; `model` loads strictly into the plain network."""
        state: dict[str, Any] = {"model": self.model.state_dict()}
        if not self.frozen:
            state |= {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        if self.average is not None:
            state["ema"] = self.average.state_dict(self.model)
        return state

    def load_weights(self, state: dict[str, Any]) -> None:
        """Load what a test needs of the state of `state_dict`."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of `state_dict`."""
        self.load_weights(state)
        if not self.frozen:
            load_optimizer(self.optimizer, state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])

    def seed_of(self, step: int, part: int) -> int:
        """The seed of the network's random numbers in a part of a step; the last one drawn is kept."""
        if self._drawn[0] != (step, part):
            self._drawn = (step, part), self._draw(Purpose.STEP, step, part)
        return self._drawn[1]

    def _draw(self, purpose: Purpose, step: int, part: int) -> int:
        """The seed of the random numbers of a part of a step.

        The first replica has those of a student without replicas, the first part those of a whole step.
        """
        keys = (step, self.replica, part) if part else (step, self.replica) if self.replica else (step,)
        return derive(self.seed, purpose, *keys)
