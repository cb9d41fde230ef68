"""The sections of a recipe: data, distillation, checkpoints, analysis, failures and time limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from kdcl_dist.config.base import Name, Precision, Strict

__all__ = [
    "Analysis",
    "Bank",
    "Checkpoint",
    "Data",
    "Distillation",
    "Failure",
    "Limits",
    "Method",
    "Transform",
]


Method = Literal["none", "naive", "linear", "min_logit", "general", "mean", "dml", "teacher"]


class Transform(Strict):
    """One transform: a class of torchvision.transforms.v2, Cutout or an import string, and its arguments."""

    model_config = ConfigDict(extra="allow")

    name: str

    def item(self) -> dict[str, Any]:
        """The transform as `kdcl_dist.data.views.build_transform` takes it."""
        return self.model_dump()


class Data(Strict):
    """What the students learn from: paths, or import strings of factories.

    `augment` is the training view, `test_view` the view of test and held-out samples; images are
    normalised with the data set's own mean and standard deviation after either. `classes` are the names
    of those to learn, in the order of their labels; null takes all.
    """

    train: str
    test: str
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    augment: list[Transform] = Field(default_factory=list)
    test_view: list[Transform] = Field(default_factory=list)
    holdout_per_class: NonNegativeInt = 0
    loader_workers: NonNegativeInt = 0

    @property
    def test_items(self) -> list[dict[str, Any]]:
        """The transforms of the test view."""
        return [transform.item() for transform in self.test_view]

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("class names must differ")
        return value


class Bank(Strict):
    """Where the students' last logits are kept for a `window` of several steps, and how many of each.

    `folder`: of the coordinator's host, for a file that is mapped into memory; null keeps them in memory.
    `top_k`: the largest logits of a sample that are kept, with what the other classes have together;
    null keeps all.
    """

    folder: str | None = None
    top_k: PositiveInt | None = None


class Distillation(Strict):
    """Which soft target, and how much of it.

    `temperature` is T and `weight` is lambda of the paper's equations 1-2. `invariant`: every student
    draws its own view of a sample (section 3.2); otherwise all see the same view. `window`: steps, or
    "epoch", within which each student walks the same samples in its own order; of more than one step, the
    students learn from each other's last logits of a sample, none older than `max_staleness` steps, which
    the `bank` keeps. `logit_noise`: standard deviation of Gaussian noise on the logits that a student
    contributes (not in the paper; off by default). `wire_precision`: of logits and soft targets on their
    way; 16 bits halve the traffic, and round what is learnt from and tested.
    """

    method: Method = "linear"
    temperature: PositiveFloat = 2.0
    weight: NonNegativeFloat = 1.0
    invariant: bool = True
    window: PositiveInt | Literal["epoch"] = 1
    max_staleness: NonNegativeInt | None = None
    bank: Bank = Bank()
    logit_noise: NonNegativeFloat = 0.0
    wire_precision: Precision = "fp32"
    teacher: Name | None = None

    @property
    def keeps_logits(self) -> bool:
        """Whether soft targets are formed of logits of earlier steps too."""
        return self.window != 1 and self.method != "none"

    @model_validator(mode="after")
    def _peers_are_at_hand(self) -> Distillation:
        if self.method == "dml" and self.window != 1:
            raise ValueError(
                "method 'dml' learns from the peers' own logits of the same step, not from a soft target: it "
                f"needs window 1 (got {self.window!r}); method 'mean' goes with any window"
            )
        return self

    @model_validator(mode="after")
    def _teacher_goes_with_its_method(self) -> Distillation:
        if (self.method == "teacher") != (self.teacher is not None):
            raise ValueError(
                f"method 'teacher' and the field teacher go together "
                f"(method is {self.method!r}, teacher is {self.teacher!r})"
            )
        return self


class Checkpoint(Strict):
    """When the cohort's checkpoint is taken, and how many are kept. The last epoch always ends with one."""

    every_epochs: PositiveInt = 1
    keep: PositiveInt = 2


class Analysis(Strict):
    """How often the ensembles and the students' conflict are measured: every so many steps, 0 never."""

    every_steps: NonNegativeInt = 100

    def measures(self, step: int) -> bool:
        """Whether a global step is measured."""
        return self.every_steps > 0 and step % self.every_steps == 0


class Failure(Strict):
    """What happens when a process of the cohort dies, hangs or fails.

    `rollback`: it is replaced, the others keep their processes, and all go back to the latest checkpoint;
    the result is that of a run without the failure, bit for bit. `continue`: the others go on without it,
    if they are at least `min_students`, and it joins them again, from its checkpoint, once it is replaced.
    `stop`: the others save their state, and the run ends. `max_failures` are those of a whole run; one more
    ends it. A student whose logits or gradients are not finite skips that step; more than `max_bad_steps`
    in a row are a failure.
    """

    policy: Literal["rollback", "continue", "stop"] = "rollback"
    max_failures: NonNegativeInt = 8
    min_students: PositiveInt = 2
    max_bad_steps: NonNegativeInt = 10

    @property
    def allowed(self) -> int:
        """Failures after which the run goes on."""
        return 0 if self.policy == "stop" else self.max_failures


class Limits(Strict):
    """Seconds after which a wait is an error: for the cohort to come together, for one step, and for a
    storage that fails and is tried again (at most a third of a step's, which waits for it).
    """

    startup_s: PositiveFloat = 300.0
    step_s: PositiveFloat = 120.0
    storage_s: PositiveFloat = 30.0

    @property
    def patience_s(self) -> float:
        """Seconds for which the storage is tried again; a step can wait for two writes."""
        return min(self.storage_s, self.step_s / 3)
