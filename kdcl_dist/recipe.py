"""What a run is: every field that changes a result or a placement, with its default and its limits.

The models are strict: unknown fields are refused, nothing is converted from one type to another, and a
built recipe cannot be changed. Reading and writing YAML is `kdcl_dist.recipe_file`'s part.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, NamedTuple

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

from kdcl_dist.optimisation import SGD, MultiStep, Optimizer, Schedule
from kdcl_dist.strict import Name, Seed, Strict

__all__ = [
    "Analysis",
    "Bank",
    "Checkpoint",
    "Data",
    "Distillation",
    "Failure",
    "Limits",
    "Member",
    "Method",
    "Recipe",
    "Resources",
    "Student",
    "Transform",
]

Precision = Literal["fp32", "bf16", "fp16"]
Method = Literal["none", "naive", "linear", "min_logit", "general", "mean", "dml", "teacher"]

#: Names of parts of a run folder that a student's files would overwrite.
RESERVED_NAMES = ("coordinator", "ensemble", "manifest")


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


class Resources(Strict):
    """What one worker of a student takes: CPU cores (its number of threads) and GPUs (one or a share)."""

    cpu: PositiveInt = 1
    gpu: Annotated[float, Field(ge=0, le=1)] = 0.0


class Student(Strict):
    """One network of the cast.

    `model` is a built-in name or an import string `package.module:factory`. `seed` decides its initial
    weights and its own stream; null derives it from the recipe's seed and the place in the cast.
    `weights` are initial weights: a file of `torch.save(model.state_dict())` or a checkpoint's student part.
    `transfer` says that they are of another task: the last linear layer starts afresh, and with "probe" it
    alone learns, with "finetune" all does.
    `augment` replaces data.augment for this student. `epochs` are fewer than the run's for a student that
    learns for a shorter time: its schedule ends then, and it goes on teaching the others as it is.
    `channels_last` keeps images and convolutions with their channels side by side, and `compile` runs the
    training steps through torch.compile: faster on many GPUs, with other last bits.
    `replicas` are workers that share each step's samples evenly and average their gradients; with
    `sync_batchnorm` batch norm takes its statistics over all of them.
    """

    name: Name
    model: str
    seed: Seed | None = None
    weights: str | None = None
    transfer: Literal["probe", "finetune"] | None = None
    augment: list[Transform] | None = None
    epochs: PositiveInt | None = None
    optimizer: Optimizer = SGD()
    schedule: Schedule = MultiStep()
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    replicas: PositiveInt = 1
    sync_batchnorm: bool = False
    accelerator: str | None = None
    resources: Resources = Resources()

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value.lower() in RESERVED_NAMES:
            raise ValueError(f"{', '.join(RESERVED_NAMES)} are names of other parts of a run")
        return value

    @model_validator(mode="after")
    def _batchnorm_can_be_compiled(self) -> Student:
        if self.compile and self.sync_batchnorm:
            raise ValueError(
                "compile: true and sync_batchnorm: true do not go together: torch.compile cannot follow what "
                "the replicas say to each other inside the network"
            )
        return self

    @model_validator(mode="after")
    def _transfer_has_weights(self) -> Student:
        if self.transfer is not None and self.weights is None:
            raise ValueError(
                f"transfer: {self.transfer!r} begins from weights of another task (weights is null)"
            )
        return self


class Member(NamedTuple):
    """One worker of the cast: a student's place in the cast, and which of its replicas it is."""

    student: int
    replica: int
    name: str


class Checkpoint(Strict):
    """When the cast's checkpoint is taken, and how many are kept. The last epoch always ends with one."""

    every_epochs: PositiveInt = 1
    keep: PositiveInt = 2


class Analysis(Strict):
    """How often the ensembles and the students' conflict are measured: every so many steps, 0 never."""

    every_steps: NonNegativeInt = 100

    def measures(self, step: int) -> bool:
        """Whether a global step is measured."""
        return self.every_steps > 0 and step % self.every_steps == 0


class Failure(Strict):
    """What happens when a process of the cast dies, hangs or fails.

    `rollback`: it is replaced, the others keep their processes, and all go back to the newest checkpoint;
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
    """Seconds after which a wait is an error: for the cast to come together, for one step, and for a
    storage that fails and is tried again (at most a third of a step's, which waits for it).
    """

    startup_s: PositiveFloat = 300.0
    step_s: PositiveFloat = 120.0
    storage_s: PositiveFloat = 30.0

    @property
    def patience_s(self) -> float:
        """Seconds for which the storage is tried again; a step can wait for two writes."""
        return min(self.storage_s, self.step_s / 3)


class Recipe(Strict):
    """A whole run. `batch_size` is the number of samples of one step, the same for every student."""

    name: Name = "run"
    seed: Seed = 0
    epochs: PositiveInt = 30
    batch_size: PositiveInt = 64
    deterministic: bool = False
    data: Data
    distillation: Distillation = Distillation()
    students: Annotated[list[Student], Field(min_length=1)]
    checkpoint: Checkpoint = Checkpoint()
    analysis: Analysis = Analysis()
    failure: Failure = Failure()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _cast_is_consistent(self) -> Recipe:
        for check in CHECKS:
            check(self)
        return self

    @property
    def names(self) -> list[str]:
        """The students' names in the order of the cast."""
        return [student.name for student in self.students]

    @property
    def members(self) -> list[Member]:
        """All workers in the order of the cast: student "a", or "a/0" and "a/1" if it has two replicas."""
        return [
            Member(place, replica, student.name if student.replicas == 1 else f"{student.name}/{replica}")
            for place, student in enumerate(self.students)
            for replica in range(student.replicas)
        ]

    def epochs_of(self, student: Student) -> int:
        """Epochs for which one student learns."""
        return student.epochs or self.epochs

    def augment_of(self, student: Student) -> list[dict[str, Any]]:
        """The training transforms of one student."""
        chosen = self.data.augment if student.augment is None else student.augment
        return [transform.item() for transform in chosen]

    def is_teacher(self, student: Student) -> bool:
        """Whether the student is the frozen teacher of the cast."""
        return student.name == self.distillation.teacher

    def warnings(self) -> list[str]:
        """What is allowed but hardly meant, one line each."""
        starts = Counter(
            (s.model, s.weights or s.seed) for s in self.students if s.weights or s.seed is not None
        )
        found = [
            f"{count} students start identical (model {model!r}, seed or weights {start!r}): they teach each "
            f"other nothing new; give them different seeds, or seed: null"
            for (model, start), count in starts.items()
            if count > 1
        ]
        for student in self.students:
            schedule, epochs = student.schedule, self.epochs_of(student)
            path = f"students.{student.name}.schedule"
            if isinstance(schedule, MultiStep) and any(m >= epochs for m in schedule.milestones):
                found.append(f"{path}.milestones: {schedule.milestones} go beyond the {epochs} epochs")
            if schedule.warmup_epochs >= epochs:
                found.append(f"{path}.warmup_epochs: {schedule.warmup_epochs}, but there are {epochs} epochs")
        return found


def _names_differ(recipe: Recipe) -> None:
    twice = [name for name, count in Counter(name.lower() for name in recipe.names).items() if count > 1]
    if twice:
        raise ValueError(
            f"students: names must differ, also in lower case (more than once: {', '.join(twice)})"
        )


def _teacher_exists(recipe: Recipe) -> None:
    teacher = recipe.distillation.teacher
    if teacher is None:
        return
    found = [student for student in recipe.students if student.name == teacher]
    if not found:
        raise ValueError(
            f"distillation.teacher: no student is named {teacher!r} (have {', '.join(recipe.names)})"
        )
    if found[0].weights is None:
        raise ValueError(
            f"students.{teacher}.weights: the teacher is frozen, so its weights must be given (got null)"
        )
    if found[0].transfer is not None:
        raise ValueError(
            f"students.{teacher}.transfer: the teacher is frozen, so it cannot learn a new head "
            f"(got {found[0].transfer!r})"
        )
    if len(recipe.students) < 2:
        raise ValueError("students: method 'teacher' needs at least one student besides the teacher (got 1)")


def _general_has_holdout(recipe: Recipe) -> None:
    if recipe.distillation.method == "general" and recipe.data.holdout_per_class == 0:
        raise ValueError(
            "data.holdout_per_class: method 'general' weighs the students by samples held out of training; "
            "set it to 1 or more (got 0)"
        )


def _same_view_has_same_augment(recipe: Recipe) -> None:
    own = [student.name for student in recipe.students if student.augment is not None]
    if own and not recipe.distillation.invariant:
        raise ValueError(
            f"students.{own[0]}.augment: distillation.invariant is false, which shows all students the same "
            "view, so none can have an augment of its own"
        )


def _replicas_share_evenly(recipe: Recipe) -> None:
    for student in recipe.students:
        if recipe.batch_size % student.replicas:
            raise ValueError(
                f"students.{student.name}.replicas: {student.replicas} replicas cannot share a batch_size of "
                f"{recipe.batch_size} evenly"
            )


def _someone_learns_to_the_end(recipe: Recipe) -> None:
    for student in recipe.students:
        if recipe.epochs_of(student) > recipe.epochs:
            raise ValueError(
                f"students.{student.name}.epochs: {student.epochs} is more than the run has: epochs is "
                f"{recipe.epochs}"
            )
    learners = [student for student in recipe.students if not recipe.is_teacher(student)]
    if all(recipe.epochs_of(student) < recipe.epochs for student in learners):
        raise ValueError(f"epochs: {recipe.epochs} is more than any student learns for; lower it")


CHECKS = (
    _names_differ,
    _teacher_exists,
    _general_has_holdout,
    _same_view_has_same_augment,
    _replicas_share_evenly,
    _someone_learns_to_the_end,
)
