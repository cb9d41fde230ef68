"""What a student measures of a training step, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcl_dist.distillation.losses import Losses
from kdcl_dist.exchange.message import StepMetrics
from kdcl_dist.run.step_figures import of_parts

__all__ = ["StepPart", "metrics_of"]

#: The figures that the device computes.
ON_DEVICE = ("loss", "task_loss", "distillation_loss", "skipped")


@dataclass
class StepPart:
    """The figures of one part: some of `StepMetrics`, by name; those of `ON_DEVICE` in `on_device` (4,)."""

    figures: dict[str, float]
    on_device: Tensor

    @classmethod
    def of(cls, figures: dict[str, float], losses: Losses, skipped: Tensor | None = None) -> StepPart:
        """The part with these losses; `skipped` as of `Student.learn`. The host does not wait."""
        with torch.no_grad():
            skipped = torch.zeros_like(losses.total) if skipped is None else skipped
            return cls(figures, torch.stack([*losses, skipped]))


def metrics_of(parts: Sequence[StepPart]) -> StepMetrics:
    """The figures of a step from all its parts; the host waits for the device."""
    figures = [
        StepMetrics()._asdict() | part.figures | dict(zip(ON_DEVICE, part.on_device.tolist(), strict=True))
        for part in parts
    ]
    return StepMetrics(**of_parts(figures))
