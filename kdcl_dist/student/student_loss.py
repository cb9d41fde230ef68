"""The loss of one student: its cross-entropy with the labels, and what the recipe's method adds.

Shapes: B batch, C classes, P peers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from kdcl_dist.config.distillation import Distillation
from kdcl_dist.config.student import Student
from kdcl_dist.distillation.divergences import Divergence
from kdcl_dist.distillation.losses import Losses, distillation_loss, task_loss
from kdcl_dist.distillation.methods import Context, PeerLoss
from kdcl_dist.student.own_loss import load_divergence, load_peer_loss
from kdcl_dist.utils.devices import to_device

__all__ = ["StudentLoss"]


class StudentLoss:
    """The loss of a student's logits.

    Args:
        distillation, spec: of the recipe.
        device: of the logits.

    Attributes:
        class_weights_C: factors of the classes in the cross-entropy, float32; None: all are 1.
        paused: whether the method lets the student learn nothing from the logits of the last call.
    """

    def __init__(self, distillation: Distillation, spec: Student, device: torch.device) -> None:
        self.distillation, self.spec, self.device = distillation, spec, device
        self.class_weights_C: Tensor | None = None
        self.paused = False

    @cached_property
    def peer_loss(self) -> PeerLoss | None:
        """The loss of a method with peers; one of the user's own is loaded when the student needs it."""
        return load_peer_loss(self.distillation)

    @cached_property
    def divergence(self) -> Divergence:
        """The recipe's loss; one of the user's own is loaded when the student needs it."""
        return load_divergence(self.distillation)

    def __call__(
        self,
        logits_BC: Tensor,
        labels_B: Tensor,
        target: Tensor | None,
        covered_B: Tensor | None = None,
        context: Context | None = None,
        task: Tensor | None = None,
    ) -> Losses:
        """The loss of the recipe's method.

        Args:
            logits_BC: the student's own, with gradient if it learns.
            labels_B: the classes, or class probabilities (B, C).
            target: the log-probabilities of the soft target at the recipe's temperature, (B, C), or the
                peers' logits, (P, B, C), of a method with peers. None: the student learns alone.
            covered_B: which samples have a soft target; None: all. See `distillation_loss`.
            context: what a method with peers may know. None: nothing.
            task: the result of `task` for these logits, if it is known already.

        Raises:
            MethodError: a method or a loss of the user's own cannot be loaded, or fails.
        """
        self.paused = False
        task = self.task(logits_BC, labels_B) if task is None else task
        if target is None:
            return Losses(task, task, torch.zeros_like(task))
        labels_B = to_device(labels_B, self.device)
        target = to_device(target, self.device)
        temperature, weight = self.distillation.temperature, self.distillation.weight
        if self.peer_loss is not None:
            context = replace(context or Context(), divergence=self.divergence)
            loss = self.peer_loss(logits_BC, target, labels_B, temperature, context)
            self.paused = loss is None
            loss = torch.zeros_like(task) if loss is None else loss
            return Losses.of(task, loss, weight)
        # Row numbers, computed on the CPU: with a mask on the GPU the host would wait for the GPU.
        covered_K = None if covered_B is None else to_device(covered_B.nonzero()[:, 0], self.device)
        loss = distillation_loss(
            logits_BC, target, temperature, covered_K, divergence=self.divergence, labels_B=labels_B
        )
        return Losses.of(task, loss, weight)

    def task(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The cross-entropy, which needs no soft target; arguments as of the call."""
        return task_loss(
            logits_BC,
            to_device(labels_B, self.device),
            label_smoothing=self.spec.label_smoothing,
            class_weights_C=self.class_weights_C,
        )
