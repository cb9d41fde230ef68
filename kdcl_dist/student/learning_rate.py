"""Learning-rate schedules, as pure functions of the step."""

from __future__ import annotations

import math

from kdcl_dist.config.schedules import Constant, Cosine, MultiStep, OneCycle, OwnSchedule, Poly, Schedule
from kdcl_dist.errors import ModelError, of_user_code
from kdcl_dist.utils.import_strings import load_object

__all__ = ["learning_rate"]


def learning_rate(schedule: Schedule, lr: float, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of one step.

    Args:
        schedule: of the recipe.
        lr: the optimiser's base learning rate, reached at the end of the warm-up.
        step: global step, from 0.
        steps_per_epoch: steps of an epoch; epochs: epochs of the run.

    Raises:
        ModelError: a schedule of the user's own cannot be imported, fails, or returns no learning rate.
    """
    steps = epochs * steps_per_epoch
    if isinstance(schedule, OwnSchedule):
        return _own(schedule, lr, step=step, steps_per_epoch=steps_per_epoch, epochs=epochs)
    if isinstance(schedule, OneCycle):
        return lr * _one_cycle(schedule, step, steps)
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return schedule.warmup_lr + (lr - schedule.warmup_lr) * step / warmup_steps
    if isinstance(schedule, MultiStep):
        passed = sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
        return lr * schedule.gamma**passed
    return _falling(schedule, lr, (step - warmup_steps) / max(1, steps - warmup_steps))


def _falling(schedule: Constant | Cosine | Poly, lr: float, progress: float) -> float:
    """The learning rate at a share of the steps after the warm-up."""
    if isinstance(schedule, Constant):
        return lr
    fall = lr - schedule.min_lr
    if isinstance(schedule, Cosine):
        return schedule.min_lr + fall * 0.5 * (1 + math.cos(math.pi * progress))
    return schedule.min_lr + fall * math.pow(1 - progress, schedule.power)


def _one_cycle(schedule: OneCycle, step: int, steps: int) -> float:
    """The factor of the learning rate; the peak is at the step `rise` * `steps` - 1, as in PyTorch."""
    peak, last = schedule.rise * steps - 1, steps - 1
    if step <= peak:
        start, end, progress = schedule.initial_factor, 1.0, step / peak if peak else 1.0
    else:
        start, end, progress = 1.0, schedule.final_factor, (step - peak) / max(last - peak, 1e-9)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _own(schedule: OwnSchedule, lr: float, **position: int) -> float:
    with of_user_code(ModelError, f"schedule {schedule.name!r} fails at step {position['step']}"):
        found = float(load_object(schedule.name)(lr=lr, **position, **schedule.arguments))
    if not 0 <= found < math.inf:
        raise ModelError(
            f"schedule {schedule.name!r} returns {found} at step {position['step']}: a learning rate is a "
            "number of 0 or more"
        )
    return found
