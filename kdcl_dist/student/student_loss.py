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
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.divergences import Divergence
from kdcl_dist.distillation.losses import Losses, distillation_loss, task_loss
from kdcl_dist.distillation.methods import Context, PeerLoss
from kdcl_dist.student.learned_rows import LearnedRows
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
        learned: the rows from which the student learns; None: all.
        paused: whether the method lets the student learn nothing from the logits of the last call.
    """

    def __init__(self, distillation: Distillation, spec: Student, device: torch.device) -> None:
        self.distillation, self.spec, self.device = distillation, spec, device
        self.class_weights_C: Tensor | None = None
        self.learned: LearnedRows | None = None
        self.paused = False

    def learn_from(self, training_data: TrainingData, index: int) -> None:
        """Take the class weights of a student of a recipe, and the samples from which it learns."""
        if (weights_C := training_data.class_weights(index)) is not None:
            self.class_weights_C = weights_C.to(self.device)
        if self.spec.data is not None and not self.spec.sees_part:
            self.learned = LearnedRows(training_data.own[index], training_data.split[0])

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
        ids_B: Tensor | None = None,
        *,
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
            ids_B: the samples, for a student that learns from some of them only. None: it learns from all.
            task: the result of `task` for these logits, if it is known already.

        Raises:
            MethodError: a method or a loss of the user's own cannot be loaded, or fails.
        """
        self.paused = False
        task = self.task(logits_BC, labels_B, ids_B) if task is None else task
        if target is None:
            return Losses(task, task, torch.zeros_like(task))
        scale, weight = 1.0, self.distillation.weight
        if self.learned is not None and ids_B is not None:
            rows_K, scale = self.learned.rows(ids_B)
            decides = self.distillation.pauses and context is not None and context.average is not None
            if not scale and not decides:
                return Losses.of(task, logits_BC.sum() * 0, weight)  # with gradient: replicas average it
            logits_BC, labels_B = logits_BC[to_device(rows_K, self.device)], labels_B[rows_K]
            target, covered_B = target[..., rows_K, :], None if covered_B is None else covered_B[rows_K]
            if not self.distillation.pauses and context is not None:  # not all replicas would call it
                context = replace(context, average=None)
        loss = self._distillation(logits_BC, labels_B, target, covered_B, context)
        self.paused = loss is None
        loss = torch.zeros_like(task) if loss is None else loss
        return Losses.of(task, loss if scale == 1 else scale * loss, weight)

    def _distillation(
        self,
        logits_BC: Tensor,
        labels_B: Tensor,
        target: Tensor,
        covered_B: Tensor | None,
        context: Context | None,
    ) -> Tensor | None:
        """The mean distillation loss over these samples; None: the student pauses."""
        labels_B, target = to_device(labels_B, self.device), to_device(target, self.device)
        temperature = self.distillation.temperature
        if self.peer_loss is not None:
            context = replace(context or Context(), divergence=self.divergence)
            return self.peer_loss(logits_BC, target, labels_B, temperature, context)
        # Row numbers, computed on the CPU: with a mask on the GPU the host would wait for the GPU.
        covered_K = None if covered_B is None else to_device(covered_B.nonzero()[:, 0], self.device)
        return distillation_loss(
            logits_BC, target, temperature, covered_K, divergence=self.divergence, labels_B=labels_B
        )

    def task(self, logits_BC: Tensor, labels_B: Tensor, ids_B: Tensor | None = None) -> Tensor:
        """The cross-entropy, which needs no soft target; arguments as of the call."""
        scale = 1.0
        if self.learned is not None and ids_B is not None:
            rows_K, scale = self.learned.rows(ids_B)
            if not scale:
                return logits_BC.sum() * 0
            logits_BC, labels_B = logits_BC[to_device(rows_K, self.device)], labels_B[rows_K]
        loss = task_loss(
            logits_BC,
            to_device(labels_B, self.device),
            label_smoothing=self.spec.label_smoothing,
            class_weights_C=self.class_weights_C,
        )
        return loss if scale == 1 else scale * loss
