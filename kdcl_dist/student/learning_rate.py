"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math

from kdcl_dist.config.optim import Cosine, MultiStep, Schedule

__all__ = ["learning_rate"]


def learning_rate(schedule: Schedule, lr: float, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of one step.

    Args:
        schedule: constant, multistep or cosine, with its warm-up.
        lr: the optimiser's base learning rate, reached at the end of the warm-up.
        step: global step, from 0.
        steps_per_epoch: steps of an epoch; epochs: epochs of the run.
    """
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return schedule.warmup_lr + (lr - schedule.warmup_lr) * step / warmup_steps
    if isinstance(schedule, MultiStep):
        passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
        return lr * schedule.gamma**passed
    if isinstance(schedule, Cosine):
        progress = (step - warmup_steps) / max(1, epochs * steps_per_epoch - warmup_steps)
        return lr * 0.5 * (1 + math.cos(math.pi * progress))
    return lr
