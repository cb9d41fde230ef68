"""The smaller sections of a recipe: tests, checkpoints, measurements, failures and limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from kdcl_dist.config.base import Strict

__all__ = ["Analysis", "Checkpoint", "EarlyStopping", "Evaluate", "Failure", "Figure", "Limits"]


#: A duration above 0, and up to 30 days: timers and sockets do not take any number.
Seconds = Annotated[float, Field(gt=0, le=30 * 24 * 3600)]
#: A figure of a test by which an epoch is better than another.
Figure = Literal["top1", "loss"]


class Checkpoint(Strict):
    """Checkpoints of the whole cohort. The last epoch always ends with one.

    `best` keeps each student's best epoch beside the latest ones, by its figure on validation samples; among
    equal figures the earlier epoch. A checkpoint then follows each test on them.
    """

    every_epochs: PositiveInt = Field(default=1, description="Epochs from one checkpoint to the next.")
    keep: PositiveInt = Field(default=2, description="Number of the latest checkpoints to keep.")
    in_memory_every_steps: NonNegativeInt = Field(
        default=0,
        description="Steps from one checkpoint in memory to the next; after the death of students all go "
        "back to the newest. `0`: none.",
    )
    best: Figure | None = Field(
        default=None,
        description="Figure by which an epoch is the best, `top1` or `loss`. `null`: no best is kept.",
    )


class Evaluate(Strict):
    """Tests on validation or test samples during the run. The last epoch always has one.

    Whatever `on` says, the run ends with a test on the test samples. Test data decides nothing.
    """

    every_epochs: PositiveInt = Field(default=1, description="Epochs from one test to the next.")
    on: Literal["test", "val"] | None = Field(
        default=None,
        description="Samples of the tests, `val` or `test`. `null`: `val` if the recipe has validation "
        "samples, else `test`.",
    )


class EarlyStopping(Strict):
    """The end of a run before its last epoch, once no student has improved for a while.

    A test on validation samples counts as an improvement if any student's figure is better than all that
    it had before. The learning rates stay those of all `epochs`.
    """

    metric: Figure = Field(default="top1", description="Figure on validation samples, `top1` or `loss`.")
    patience: PositiveInt = Field(
        description="Tests in a row without an improvement after which the run ends."
    )


class Analysis(Strict):
    """Measurements of the ensembles, and of the conflict between the two parts of a student's loss."""

    every_steps: NonNegativeInt = Field(
        default=100, description="Steps from one measurement to the next. `0`: no measurements."
    )

    def measures(self, step: int) -> bool:
        """Whether a global step has a measurement."""
        return self.every_steps > 0 and step % self.every_steps == 0


class Failure(Strict):
    """What happens when a process of the cohort dies, hangs or fails.

    - `rollback`: a new process replaces the failed one, the others keep theirs, and all return to the latest
      checkpoint. The result is that of a run without the failure, bit for bit on the CPU.
    - `continue`: the other students go on at once. The failed student joins again from its checkpoint.
    - `stop`: the other students save their state, and the run ends.

    A student whose logits or gradients are not finite skips that step.
    """

    policy: Literal["rollback", "continue", "stop"] = Field(
        default="rollback", description="The reaction to a failure."
    )
    max_failures: NonNegativeInt = Field(
        default=8,
        description="Failures that one start of the run survives; `--resume` counts anew. One more ends it.",
    )
    min_students: PositiveInt = Field(
        default=2, description="Students that must remain for `continue`. With fewer, the others wait."
    )
    max_bad_steps: NonNegativeInt = Field(
        default=10, description="Skipped steps in a row that are allowed. One more is a failure."
    )
    verify_every_steps: NonNegativeInt = Field(
        default=0,
        description="One step in so many is computed twice by each student and compared, as is the step "
        "before each checkpoint, to find silent corruption. `0`: none.",
    )
    spares: NonNegativeInt = Field(
        default=0,
        description="Workers of Ray that wait to take over at once for one that dies: so many for each group "
        "of students with the same `resources` and `accelerator`, and each reserves the same. Without effect "
        "with launcher `local`.",
    )

    @model_validator(mode="after")
    def _spares_are_of_use(self) -> Failure:
        if self.spares and not self.allowed:
            why = "policy is 'stop'" if self.policy == "stop" else "max_failures is 0"
            raise ValueError(f"spares: {self.spares} take over for nobody, since {why}; set it to 0")
        return self

    @property
    def allowed(self) -> int:
        """Number of failures that do not end the run."""
        return 0 if self.policy == "stop" else self.max_failures


class Limits(Strict):
    """Limits of every wait, in seconds: 30 days at most. A wait beyond its limit is an error."""

    startup_s: Seconds = Field(
        default=300.0,
        description="Seconds for all processes to start and to form the cohort; also for a checkpoint, and "
        "for the files of logits at the end.",
    )
    step_s: Seconds = Field(default=120.0, description="Seconds for one step, or one part of it.")
    storage_s: Seconds = Field(
        default=30.0,
        description="Seconds of retries when the storage fails; at most a third of `step_s` is used.",
    )

    @property
    def patience_s(self) -> float:
        """Seconds of retries at the storage: at most a third of `step_s`; a step can wait for two writes."""
        return min(self.storage_s, self.step_s / 3)
