"""The recipe: every field that changes a result or a placement, and the checks across fields.

`kdcl_dist.config.recipe_file` reads and writes recipes as YAML.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml
from pydantic import Field, PositiveInt, model_validator

from kdcl_dist.config.base import Name, Seed, Strict
from kdcl_dist.config.coordinators import check_coordinators
from kdcl_dist.config.data import Data
from kdcl_dist.config.distillation import Distillation
from kdcl_dist.config.own_data import check_own_data
from kdcl_dist.config.presence import changes_of, check_presence, members_of
from kdcl_dist.config.recording import check_recording
from kdcl_dist.config.schedules import Constant, MultiStep
from kdcl_dist.config.sections import Analysis, Checkpoint, EarlyStopping, Evaluate, Failure, Limits
from kdcl_dist.config.student import Student, Worker
from kdcl_dist.config.student_warnings import student_warnings
from kdcl_dist.config.tracking import Tracker, name_of
from kdcl_dist.errors import ASSISTANT

__all__ = ["Recipe"]


class Recipe(Strict):
    """The fields of the run itself, and its sections."""

    name: Name = Field(
        default="run",
        description="Beginning of the run folder's name, before the time. `--name` gives the whole name.",
    )
    seed: Seed = Field(default=0, description="Seed of all random numbers of the run.")
    epochs: PositiveInt = Field(default=30, description="Epochs of training.")
    batch_size: PositiveInt = Field(
        default=64, description="Samples of one step, the same number for every student."
    )
    accumulate: PositiveInt = Field(
        default=1,
        description="Parts in which a step's samples pass through the networks, to save memory. Each part "
        "has an exchange; the optimisers step once, after the last part.",
    )
    coordinators: PositiveInt = Field(
        default=1,
        description="Processes that form the soft targets of a step, each of its share of the samples. More "
        "than 1 divide the ensemble's time and the traffic of the busiest host.",
    )
    deterministic: bool = Field(
        default=False,
        description="Only operations that give the same sums each time, on GPUs too. `true` is slower.",
    )
    data: Data = Field(description="Data sets and views.")
    distillation: Distillation = Field(default=Distillation(), description="Soft target and loss.")
    students: list[Student] = Field(min_length=1, description="The cohort, one item for each student.")
    evaluate: Evaluate = Field(default=Evaluate(), description="Tests during the run.")
    early_stopping: EarlyStopping | None = Field(
        default=None, description="End before the last epoch. `null`: none."
    )
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="Checkpoints.")
    analysis: Analysis = Field(default=Analysis(), description="Measurements during training.")
    tracking: list[Tracker] = Field(
        default=["tensorboard"], description="Trackers that get the metrics: names, or with fields."
    )
    failure: Failure = Field(default=Failure(), description="Reaction to failures.")
    limits: Limits = Field(default=Limits(), description="Limits of waits.")

    @model_validator(mode="after")
    def _cohort_is_consistent(self) -> Recipe:
        for check in CHECKS:
            check(self)
        return self

    def __str__(self) -> str:
        """The complete recipe as YAML, with all defaults."""
        fields = self.model_dump(mode="json")
        return str(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110))

    @property
    def names(self) -> list[str]:
        """The students' names in the order of the cohort."""
        return [student.name for student in self.students]

    @property
    def workers(self) -> list[Worker]:
        """All workers in the order of the cohort: "a" for one replica, "a/0" and "a/1" for two."""
        return [
            Worker(index, replica, student.name if student.replicas == 1 else f"{student.name}/{replica}")
            for index, student in self.networks.items()
            for replica in range(student.replicas)
        ]

    @property
    def networks(self) -> dict[int, Student]:
        """The students that have processes, by their indices in the cohort."""
        return {index: each for index, each in enumerate(self.students) if each.logits is None}

    @property
    def stored(self) -> dict[int, str]:
        """The files of the students whose logits are stored, by the students' indices in the cohort."""
        return {index: each.logits for index, each in enumerate(self.students) if each.logits is not None}

    @property
    def answers_rows(self) -> bool:
        """Whether the coordinator's answer to a training step has rows: targets, or peers' stored logits."""
        return self.distillation.sends_target or (self.distillation.peers and bool(self.stored))

    @property
    def assistants(self) -> list[str]:
        """The names of the coordinator's assistants: "coordinator/1" and so on."""
        return [f"{ASSISTANT}{number}" for number in range(1, self.coordinators)]

    @property
    def members(self) -> list[str]:
        """The names of all processes of the cohort but the coordinator, by rank: workers, then assistants."""
        return [*(worker.name for worker in self.workers), *self.assistants]

    @property
    def trackers(self) -> list[str]:
        """The names of the trackers."""
        return [name_of(tracker) for tracker in self.tracking]

    @property
    def part_size(self) -> int:
        """Samples of a part of a step: the rows of one round."""
        return self.batch_size // self.accumulate

    @property
    def averaged(self) -> list[str]:
        """The names of the students that keep an average of their weights."""
        return [student.name for student in self.students if student.ema is not None]

    @property
    def validates(self) -> bool:
        """Whether the tests during the run are on validation samples."""
        return self.data.has_val if self.evaluate.on is None else self.evaluate.on == "val"

    def epochs_of(self, student: Student) -> int:
        """Number of epochs in which a student learns, and over which its learning rate runs."""
        return student.epochs or (student.until_epoch or self.epochs) - student.from_epoch + 1

    def learns(self, student: Student, epoch: int) -> bool:
        """Whether a student learns in an epoch: a frozen one never, others in their own epochs."""
        own = epoch - student.from_epoch + 1 < self.epochs_of(student)
        return own and student.takes_part(epoch) and not self.is_frozen(student)

    def cohort(self, epoch: int) -> list[int]:
        """The indices of the students that take part in an epoch; after the run's last, of that."""
        return members_of(self.students, min(epoch, self.epochs - 1))

    @property
    def changes(self) -> tuple[int, ...]:
        """The epochs, from 0, at whose end students join or leave."""
        return changes_of(self.students, self.epochs)

    def ends_schedule(self, student: Student) -> bool:
        """Whether a student's learning rate depends on the run's epochs."""
        bounded = student.epochs is not None or student.until_epoch is not None
        independent = bounded or isinstance(student.schedule, (Constant, MultiStep))
        return not independent and not self.is_frozen(student)

    def augment_of(self, student: Student) -> list[dict[str, Any]]:
        """The training transforms of a student, as `kdcl_dist.data.views.Transforms` takes them."""
        chosen = self.data.augment if student.augment is None else student.augment
        return [transform.item() for transform in chosen]

    def is_frozen(self, student: Student) -> bool:
        """Whether the student never learns: a frozen one, a file, or a teacher of method `teacher`."""
        return student.frozen or student.logits is not None or student.name in self.distillation.teachers

    @property
    def learners(self) -> list[str]:
        """The names of the students that ever learn."""
        return [student.name for student in self.students if not self.is_frozen(student)]

    def warnings(self) -> list[str]:
        """Settings that are allowed but hardly intended, one line each."""
        return student_warnings(self.students, self.epochs_of)


def _names_differ(recipe: Recipe) -> None:
    twice = [name for name, count in Counter(name.lower() for name in recipe.names).items() if count > 1]
    if twice:
        raise ValueError(
            f"students: names must differ, also in lower case (more than once: {', '.join(twice)})"
        )


def _trackers_differ(recipe: Recipe) -> None:
    if twice := [name for name, count in Counter(recipe.trackers).items() if count > 1]:
        raise ValueError(f"tracking: {twice[0]!r} is there more than once")


def _teachers_exist(recipe: Recipe) -> None:
    for name in recipe.distillation.teachers:
        if name not in recipe.names:
            raise ValueError(
                f"distillation.teacher: no student is named {name!r} (have {', '.join(recipe.names)})"
            )


def _frozen_students_only_teach(recipe: Recipe) -> None:
    frozen = [student for student in recipe.students if recipe.is_frozen(student)]
    for student in frozen:
        who = "the teacher" if student.name in recipe.distillation.teachers else "the student"
        for field, value, why in (
            ("weights", student.lacks_weights, "so its weights must be given (got null)"),
            ("transfer", student.transfer, f"so it cannot learn a new head (got {student.transfer!r})"),
            ("ema", student.ema, "so its weights have no average"),
            ("epochs", student.epochs, f"so it has no epochs in which it learns (got {student.epochs})"),
        ):
            if value:
                raise ValueError(f"students.{student.name}.{field}: {who} is frozen, {why}")
    if len(frozen) == len(recipe.students):
        raise ValueError(
            f"students: a cohort needs at least one student that learns, besides the frozen "
            f"{', '.join(student.name for student in frozen)}"
        )


def _weights_have_holdout(recipe: Recipe) -> None:
    if recipe.distillation.needs_holdout and recipe.data.holdout_per_class == 0:
        raise ValueError(
            f"data.holdout_per_class: method {recipe.distillation.method_name!r} weighs the students by "
            "samples held out of training; set it to 1 or more (got 0)"
        )


def _same_view_has_same_augment(recipe: Recipe) -> None:
    own = [student.name for student in recipe.students if student.augment is not None]
    if own and not recipe.distillation.invariant:
        raise ValueError(
            f"students.{own[0]}.augment: distillation.invariant is false, which shows all students the same "
            "view, so none can have an augment of its own"
        )


def _memory_holds_the_bank(recipe: Recipe) -> None:
    every, folder = recipe.checkpoint.in_memory_every_steps, recipe.distillation.bank.folder
    if every and folder is not None:
        raise ValueError(
            f"checkpoint.in_memory_every_steps: {every} takes memory for the bank of logits, which "
            f"distillation.bank.folder {folder!r} keeps in a file: leave one of both out"
        )


def _parts_are_even(recipe: Recipe) -> None:
    if recipe.batch_size % recipe.accumulate:
        raise ValueError(
            f"accumulate: {recipe.accumulate} parts cannot share a batch_size of {recipe.batch_size} evenly"
        )
    if recipe.accumulate > 1 and recipe.distillation.window != 1:
        raise ValueError(
            f"accumulate: {recipe.accumulate} needs distillation.window 1 (got "
            f"{recipe.distillation.window!r}): a part of a step must have the same samples for all students"
        )


def _replicas_share_evenly(recipe: Recipe) -> None:
    whole = (
        "a batch_size of" if recipe.accumulate == 1 else f"one of {recipe.accumulate} parts (accumulate) of"
    )
    for student in recipe.students:
        if recipe.part_size % student.replicas:
            raise ValueError(
                f"students.{student.name}.replicas: {student.replicas} replicas cannot share {whole} "
                f"{recipe.part_size} evenly"
            )


def _coordinators_can_share(recipe: Recipe) -> None:
    part = recipe.part_size, f"batch_size is {recipe.batch_size}, accumulate {recipe.accumulate}"
    check_coordinators(recipe.coordinators, recipe.data, recipe.distillation, recipe.students, part)


def _mixed_samples_can_be_learned(recipe: Recipe) -> None:
    if not recipe.data.mixes:
        return
    field = "data.mixup" if recipe.data.mixup else "data.cutmix"
    if (reason := recipe.distillation.one_class_reason) is not None:
        raise ValueError(f"{field}: {reason}")
    if recipe.distillation.window != 1:
        raise ValueError(
            f"{field}: a sample's partner is of the same step, and students share a step's samples with "
            f"distillation.window 1 only (got {recipe.distillation.window!r})"
        )
    if stored := [recipe.names[index] for index in recipe.stored]:
        name = f"students.{stored[0]}.logits"
        raise ValueError(f"{name}: a file has no logits of mixed samples ({field}): leave one of both out")
    if recipe.part_size == 1:
        raise ValueError(
            f"{field}: one sample alone has no other to be mixed with (batch_size is {recipe.batch_size}, "
            f"accumulate {recipe.accumulate})"
        )


def _members_can_learn(recipe: Recipe) -> None:
    check_own_data(recipe.students, recipe.distillation.window, mixes=recipe.data.mixes)
    check_presence(recipe.students, recipe.epochs, recipe.learns, recipe.distillation.teachers)


def _logits_can_be_recorded(recipe: Recipe) -> None:
    stored = {recipe.names[index] for index in recipe.stored}
    cohort = recipe.names, stored, recipe.coordinators, recipe.epochs
    check_recording(recipe.distillation, recipe.data, *cohort)


def _validation_has_samples(recipe: Recipe) -> None:
    if recipe.evaluate.on == "val" and not recipe.data.has_val:
        raise ValueError("evaluate.on: 'val' needs validation samples: set data.val or data.val_fraction")


def _only_validation_decides(recipe: Recipe) -> None:
    if recipe.validates:
        return
    remedy = "set evaluate.on to val" if recipe.data.has_val else "set data.val or data.val_fraction"
    for path, value in (
        ("checkpoint.best", recipe.checkpoint.best),
        ("early_stopping.metric", recipe.early_stopping and recipe.early_stopping.metric),
    ):
        if value is not None:
            raise ValueError(
                f"{path}: {value!r} is decided on validation samples, test data decides nothing: {remedy}"
            )


CHECKS = (
    _names_differ,
    _trackers_differ,
    _teachers_exist,
    _frozen_students_only_teach,
    _weights_have_holdout,
    _validation_has_samples,
    _only_validation_decides,
    _same_view_has_same_augment,
    _memory_holds_the_bank,
    _parts_are_even,
    _replicas_share_evenly,
    _coordinators_can_share,
    _mixed_samples_can_be_learned,
    _members_can_learn,
    _logits_can_be_recorded,
)
