"""The schedule of a run: the sequence of its rounds, the same for every process.

Students and coordinator follow one schedule side by side. No message announces the next round; a message of
another round than the expected one is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import islice
from typing import Any

__all__ = ["Kind", "Round", "RunSchedule", "share_of"]


@dataclass(frozen=True)
class Round:
    """One collective of the run.

    Attributes:
        kind: its purpose.
        epoch: epoch, from 0.
        step: number of training steps before it; for TRAIN its own global step.
        part: of a training step, or batch number within a pass over held-out samples or within all passes
            of a test.
    """

    kind: Kind
    epoch: int
    step: int
    part: int = 0

    @property
    def moment(self) -> tuple[int, int, int, int]:
        """The sort key of rounds."""
        return self.epoch, self.kind, self.step, self.part

    @property
    def uses_checkpoints(self) -> bool:
        """Whether students read or write a checkpoint in it, which takes longer than a step."""
        return self.kind is Kind.CHECKPOINT or (self.kind is Kind.BEST and self.part == 0)

    @property
    def rewound(self) -> Round:
        """The first part of this step or of these passes, where interrupted ones resume."""
        return replace(self, part=0)


@dataclass(frozen=True)
class RunSchedule:
    """The sizes that determine the sequence of rounds.

    Attributes:
        epochs: epochs of training.
        steps_per_epoch: training steps of each epoch.
        holdout_batches: batches of a pass over the held-out samples; 0 for methods without weights.
        test_batches: batches of a pass over the test samples.
        checkpoint_epochs: epochs from one checkpoint to the next; the last epoch always ends with one.
        samples: size of the training set with its held-out samples; every training sample id is below it.
        val_batches: batches of a pass over the validation samples; 0: the tests are on the test samples.
        evaluate_epochs: epochs from one test to the next; the last epoch always has one.
        best: whether the best weights of each student are kept: a checkpoint follows each test, and the run
            ends with a test of them.
        test_passes: passes of each test over its samples: the second is that of averaged weights.
        accumulate: parts of a training step.
        changes: epochs, from 0, at whose end students join or leave: they end as the run's last, with tests
            and a checkpoint.
    """

    epochs: int
    steps_per_epoch: int
    holdout_batches: int
    test_batches: int
    checkpoint_epochs: int
    samples: int = 0
    val_batches: int = 0
    evaluate_epochs: int = 1
    best: bool = False
    test_passes: int = 1
    accumulate: int = 1
    changes: tuple[int, ...] = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> RunSchedule:
        """The schedule whose fields were sent as JSON, which has no tuples."""
        return cls(**{**fields, "changes": tuple(fields["changes"])})

    def for_cohort(self, changes: tuple[int, ...], *, averages: bool) -> RunSchedule:
        """The schedule of the same data for another cohort; `averages`: whether it has averaged weights."""
        return replace(self, changes=changes, test_passes=2 if averages else 1)

    def shortened(self, steps: int) -> RunSchedule:
        """Some of the first epoch's steps, one batch of each pass, and a checkpoint: what a dry run does."""
        return replace(
            self,
            epochs=1,
            steps_per_epoch=min(steps, self.steps_per_epoch),
            holdout_batches=min(1, self.holdout_batches),
            val_batches=min(1, self.val_batches),
            test_batches=1,
            best=False,
            changes=(),
        )

    def ends_step(self, round: Round) -> bool:
        """Whether a round of TRAIN is the last of its step."""
        return round.part + 1 == self.accumulate

    def ends_epoch(self, round: Round) -> bool:
        """Whether a round of TRAIN is the last of its epoch."""
        return self.ends_step(round) and (round.step + 1) % self.steps_per_epoch == 0

    def batches(self, kind: Kind) -> int:
        """The number of batches in one pass of a kind."""
        if kind is Kind.HOLDOUT:
            return self.holdout_batches
        return self.val_batches if kind is Kind.VALIDATE else self.test_batches

    def test_batch(self, round: Round) -> tuple[int, int]:
        """Of a round over samples the pass, and the batch within it; from 0."""
        return divmod(round.part, self.batches(round.kind))

    def ends_test(self, round: Round) -> bool:
        """Whether a round of VALIDATE, EVALUATE or BEST is the last of its kind in its epoch."""
        return round.part + 1 == self.test_passes * self.batches(round.kind)

    def ends_tests(self, round: Round) -> bool:
        """Whether a round of VALIDATE or EVALUATE is the last of its epoch."""
        return self.ends_test(round) and self.after(round).kind is not Kind.EVALUATE

    def changes_cohort(self, round: Round) -> bool:
        """Whether students join or leave after a round: the checkpoint of an epoch that another follows."""
        at_end = round.kind is Kind.CHECKPOINT and round.step == (round.epoch + 1) * self.steps_per_epoch
        return at_end and round.epoch in self.changes and round.epoch + 1 < self.epochs

    def can_resume_after(self, round: Round) -> bool:
        """Whether the run can be resumed after a round: between an epoch's steps, and after a checkpoint."""
        if round.kind is Kind.TRAIN:
            return self.ends_step(round) and not self.ends_epoch(round)
        return round.kind is Kind.CHECKPOINT and round.epoch + 1 < self.epochs

    def tests(self, epoch: int) -> bool:
        """Whether an epoch ends with a test."""
        return self._is_last(epoch) or (epoch + 1) % self.evaluate_epochs == 0

    def saves(self, epoch: int) -> bool:
        """Whether a checkpoint follows an epoch."""
        is_due = self._is_last(epoch) or (epoch + 1) % self.checkpoint_epochs == 0
        return is_due or (self.best and self.tests(epoch))

    def _is_last(self, epoch: int) -> bool:
        """Whether an epoch is the last, of the run or of some cohort."""
        return epoch + 1 == self.epochs or epoch in self.changes

    def first(self, step: int) -> Round:
        """The first round after `step` training steps and the rounds at the end of their epochs."""
        epoch = step // self.steps_per_epoch
        if epoch < self.epochs:
            return Round(Kind.TRAIN, epoch, step)
        return Round(Kind.BEST if self.best else Kind.END, epoch, step)

    def rounds(self, start: Round) -> Iterator[Round]:
        """All rounds from `start` on."""
        for epoch in range(start.epoch, self.epochs):
            yield from (round for round in self._epoch(epoch) if round.moment >= start.moment)
        yield from (round for round in self._end() if round.moment >= start.moment)

    def after(self, round: Round) -> Round:
        """The next round; the last round follows itself."""
        if round.kind is Kind.TRAIN and not self.ends_epoch(round):
            # Without a pass through the epoch, since this runs at every step.
            turn = round.step * self.accumulate + round.part + 1
            return replace(round, step=turn // self.accumulate, part=turn % self.accumulate)
        rounds = self.rounds(round)
        return next(rounds) if round.kind is Kind.END else next(islice(rounds, 1, None))

    def _epoch(self, epoch: int) -> Iterator[Round]:
        first, end = epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch
        for step in range(first, end):
            for part in range(self.accumulate):
                yield Round(Kind.TRAIN, epoch, step, part)
        for part in range(self.holdout_batches):
            yield Round(Kind.HOLDOUT, epoch, end, part)
        last, has_test = self._is_last(epoch), self.tests(epoch)
        for part in range(self.test_passes * self.val_batches if has_test else 0):
            yield Round(Kind.VALIDATE, epoch, end, part)
        on_test = last or (has_test and not self.val_batches)
        for part in range(self.test_passes * self.test_batches if on_test else 0):
            yield Round(Kind.EVALUATE, epoch, end, part)
        if self.saves(epoch):
            yield Round(Kind.CHECKPOINT, epoch, end)

    def _end(self) -> Iterator[Round]:
        """The rounds after the last epoch's checkpoint."""
        step = self.epochs * self.steps_per_epoch
        for part in range(self.test_passes * self.test_batches if self.best else 0):
            yield Round(Kind.BEST, self.epochs, step, part)
        yield Round(Kind.END, self.epochs, step)


def share_of(rows: int, replica: int, replicas: int) -> int:
    """Number of a batch's rows for one replica: as even as possible, the first replicas take one more."""
    return rows // replicas + (replica < rows % replicas)


class Kind(IntEnum):
    """The purpose of a round; also the phase that an error names."""

    TRAIN = 1
    HOLDOUT = 2
    VALIDATE = 3
    EVALUATE = 4
    CHECKPOINT = 5
    BEST = 6
    END = 7
