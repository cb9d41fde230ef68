"""How long the runs of a table take, measured before it starts by some steps of each arm."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdcl_dist.compare.experiment import Job
from kdcl_dist.training import Launcher
from kdcl_dist.trial import Trial, try_run

__all__ = ["ArmTrial", "try_arms"]


@dataclass(frozen=True)
class ArmTrial:
    """What the dry run of an arm tells.

    Attributes:
        arm: its name.
        runs: how many of its runs are to be trained.
        trial: the dry run of the first of them.
        start_s: seconds of the dry run beside its steps: the start, a batch of each test, a checkpoint.
    """

    arm: str
    runs: int
    trial: Trial
    start_s: float

    @property
    def run_s(self) -> float:
        """Seconds of one run: its start and its training steps, without tests and checkpoints."""
        return self.start_s + self.trial.epochs * self.trial.epoch_s


def try_arms(jobs: Sequence[Job], steps: int, *, launcher: Launcher, storage: str) -> Iterator[ArmTrial]:
    """Take the first steps of one run of each arm, one arm after another.

    Args:
        jobs: the runs to train.
        steps: how many; at most those of an epoch.
        launcher, storage: as `kdcl_dist.train` takes them.

    Raises:
        KeyboardInterrupt: it was stopped.
        KdclError: what would end a run.
    """
    for arm in dict.fromkeys(job.arm for job in jobs):
        own = [job for job in jobs if job.arm == arm]
        began = time.monotonic()
        trial = try_run(own[0].recipe, steps, launcher=launcher, storage=storage)
        yield ArmTrial(arm, len(own), trial, time.monotonic() - began - sum(trial.steps_s))
