"""What a student measures of a training step, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdcl_dist.distillation.losses import Losses
from kdcl_dist.exchange.message import StepMetrics
from kdcl_dist.run.step_figures import of_parts

__all__ = ["StepPart", "metrics_of"]

#: The figures that the device computes.
ON_DEVICE = ("loss", "task_loss", "distillation_loss", "skipped")
TIMES = tuple(name for name in StepMetrics._fields if name.endswith("_s"))


class StepPart(NamedTuple):
    """The figures of one part: `metrics` without those of `ON_DEVICE`, which are in `on_device` (4,)."""

    metrics: StepMetrics
    on_device: Tensor

    @classmethod
    def of(cls, metrics: StepMetrics, losses: Losses, skipped: Tensor | None = None) -> StepPart:
        """The part with these losses; `skipped` as of `Student.learn`. The host does not wait."""
        with torch.no_grad():
            skipped = torch.zeros_like(losses.total) if skipped is None else skipped
            return cls(metrics, torch.stack([*losses, skipped]))

    def timed(self, times: StepMetrics) -> StepPart:
        """The part with the durations of `times`."""
        return self._replace(metrics=self.metrics._replace(**{name: getattr(times, name) for name in TIMES}))


def metrics_of(parts: Sequence[StepPart]) -> StepMetrics:
    """The figures of a step from all its parts; the host waits for the device."""
    figures = [
        part.metrics._asdict() | dict(zip(ON_DEVICE, part.on_device.tolist(), strict=True)) for part in parts
    ]
    return StepMetrics(**of_parts(figures))
