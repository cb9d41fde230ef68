"""Test results in detail: class by class, which classes are confused, and how far to trust a probability.

Shapes: B batch, C classes, K bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["ClassScores"]

#: Bins of the calibration error, as in Guo et al. (On Calibration of Modern Neural Networks, ICML 2017).
BINS = 15


class ClassScores:
    """Counts over samples, from which the accuracy of each class and the calibration error follow.

    Args:
        classes: their number.

    Attributes:
        confusion_CC: int64, samples by true class (row) and class of the largest probability (column).
    """

    def __init__(self, classes: int) -> None:
        self.confusion_CC = torch.zeros(classes, classes, dtype=torch.int64)
        self._samples_K = torch.zeros(BINS, dtype=torch.int64)
        self._correct_K = torch.zeros(BINS, dtype=torch.int64)
        self._confidence_K = torch.zeros(BINS, dtype=torch.float64)

    def add(self, log_probabilities_BC: Tensor, labels_B: Tensor) -> None:
        """Add a batch. Among equal probabilities, the lower class number is the answer."""
        top_B, answer_B = log_probabilities_BC.double().max(dim=1)
        ones_B, confidence_B = torch.ones_like(labels_B), top_B.exp()
        self.confusion_CC.index_put_((labels_B, answer_B), ones_B, accumulate=True)
        bin_B = (confidence_B * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)
        self._samples_K.index_add_(0, bin_B, ones_B)
        self._correct_K.index_add_(0, bin_B, (answer_B == labels_B).long())
        self._confidence_K.index_add_(0, bin_B, confidence_B)

    @property
    def accuracies(self) -> list[float | None]:
        """The share of each class's samples that are answered rightly; None for a class without samples."""
        total_C, right_C = self.confusion_CC.sum(dim=1).tolist(), self.confusion_CC.diagonal().tolist()
        return [right / total if total else None for right, total in zip(right_C, total_C, strict=True)]

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: mean distance of confidence and accuracy, bin by bin, 0 to 1."""
        gaps_K = (self._correct_K - self._confidence_K).abs()
        return float(gaps_K.sum() / max(int(self._samples_K.sum()), 1))

    def most_confused(self, count: int) -> list[tuple[int, int, int]]:
        """The most frequent mistakes: (true class, answered class, samples), the most frequent first."""
        wrong_CC = self.confusion_CC - torch.diag(self.confusion_CC.diagonal())
        found = wrong_CC.flatten().sort(descending=True, stable=True)
        pairs = zip(found.values[:count].tolist(), found.indices[:count].tolist(), strict=True)
        return [(*divmod(cell, len(wrong_CC)), number) for number, cell in pairs if number]

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """All of it as plain data, with the names of the classes."""
        return {
            "calibration_error": self.calibration_error,
            "class_top1": dict(zip(classes, self.accuracies, strict=True)),
            "confusion": self.confusion_CC.tolist(),
        }
