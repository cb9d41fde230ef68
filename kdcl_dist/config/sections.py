"""The sections of a recipe: data, distillation, checkpoint, analysis, failure and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

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

from kdcl_dist.config.base import Name, Own, Precision, Strict, named
from kdcl_dist.config.mixing import Mixing
from kdcl_dist.distillation.methods import METHODS
from kdcl_dist.utils.import_strings import IMPORT_STRING, is_import_string

__all__ = [
    "Analysis",
    "Bank",
    "Checkpoint",
    "Data",
    "Distillation",
    "Failure",
    "Limits",
    "Method",
    "OwnMethod",
    "Transform",
]


#: A duration above 0, and up to 30 days: timers and sockets do not take any number.
Seconds = Annotated[float, Field(gt=0, le=30 * 24 * 3600)]
if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[tuple(METHODS)]
ImportString = Annotated[str, Field(pattern=rf"^{IMPORT_STRING}$")]


class OwnMethod(Own):
    """A method of your own: `my_methods:median`, or with arguments `{name: my_methods:median, sharpness: 2}`.

    The coordinator calls the function with `logits_SBC` of the students that are present, `labels_B`, the
    temperature T, a `kdcl_dist.ensembles.Context`, and the fields that this table does not list as its
    arguments. It returns the log-probabilities (B, C) of the soft target at T. With `data.mixup` or
    `data.cutmix` the labels are class probabilities (B, C).

    With `peers: true` the function teaches student by student, as `dml` does: each student calls it with its
    own `logits_BC`, the others' `peers_PBC`, `labels_B`, T and the context. It returns the student's
    distillation loss, a scalar.
    """

    peers: bool = Field(
        default=False,
        description="Whether every student gets its peers' logits and the function is its loss. Needs "
        "`window` 1.",
    )


class Transform(Strict):
    """One transform of an image, such as `{name: RandomCrop, size: 32, padding: 4}`.

    The fields beside `name` are the arguments of the transform. No transform may enlarge an image above
    4096 x 4096 pixels.

    Transforms run in the order of the list. The images are normalised afterwards, with the mean and the
    standard deviation of the data set.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        description="A class of `torchvision.transforms.v2`, `Cutout`, or an import string "
        "`package.module:factory`."
    )

    def item(self) -> dict[str, Any]:
        """The transform as `kdcl_dist.data.views.Transforms` takes it."""
        return self.model_dump()


class Data(Strict):
    """The data sets and the views of their images."""

    train: str = Field(description="Training set: a path, or an import string `package.module:factory`.")
    test: str = Field(description="Test set, in the same form.")
    classes: Annotated[list[str], Field(min_length=2)] | None = Field(
        default=None, description="Classes to learn, at least two, in the order of their labels. `null`: all."
    )
    augment: list[Transform] = Field(default=[], description="Transforms of the training view.")
    test_view: list[Transform] = Field(default=[], description="Transforms of test and held-out samples.")
    holdout_per_class: NonNegativeInt = Field(
        default=0,
        description="Training samples of each class that are held out. The weights of method `general` "
        "need 1 or more.",
    )
    mixup: Mixing | None = Field(
        default=None,
        description="Images of training samples are blended in pairs (Zhang et al., 2018). `null`: never.",
    )
    cutmix: Mixing | None = Field(
        default=None,
        description="A box of each training image is taken from another image (Yun et al., 2019). `null`: "
        "never.",
    )
    loader_workers: NonNegativeInt = Field(
        default=0, description="Loader processes of each worker. `0`: the worker loads its own samples."
    )

    @property
    def mixes(self) -> bool:
        """Whether training samples are mixed, at some steps at least."""
        return self.mixup is not None or self.cutmix is not None

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

    @model_validator(mode="after")
    def _a_step_is_mixed_once(self) -> Data:
        if self.mixup is None or self.cutmix is None:
            return self
        first, second = self.mixup.probability, self.cutmix.probability
        if first + second > 1 + 1e-9:
            raise ValueError(
                f"mixup.probability ({first}) and cutmix.probability ({second}) have a sum above 1: a step "
                "is mixed in one of the two ways, so give each its share of the steps"
            )
        return self


class Bank(Strict):
    """The store of the students' last logits, for a `window` of more than one step."""

    folder: str | None = Field(
        default=None,
        description="Folder on the coordinator's host for a memory-mapped file. `null`: in memory.",
    )
    top_k: PositiveInt | None = Field(
        default=None,
        description="Number of the largest logits to keep of each sample, beside the total of the other "
        "classes. `null`: all.",
    )


class Distillation(Strict):
    """The soft target, and its share of the loss. Equations and sections are those of the KDCL paper.

    The methods, by what a student learns from beside the labels:

    METHODS
    - an import string: the soft target or the loss that a function of your own forms.

    With a `window` of more than one step, each student takes the samples of the window in its own order and
    learns from the others' last logits of a sample. `max_staleness` and `bank` have an effect only then.
    """

    method: Annotated[Method | ImportString | OwnMethod, named("linear", *METHODS)] = Field(
        default="linear", description="Kind of the soft target."
    )
    temperature: PositiveFloat = Field(default=2.0, description="T of equation 1.")
    weight: NonNegativeFloat = Field(
        default=1.0, description="Lambda of equation 2: the weight of the distillation loss."
    )
    invariant: bool = Field(
        default=True,
        description="Every student draws its own view of a sample (section 3.2). `false`: one view for all.",
    )
    window: PositiveInt | Literal["epoch"] = Field(
        default=1,
        description="Steps of a window, or `epoch`. `1`: all students see the same samples at a step.",
    )
    max_staleness: NonNegativeInt | None = Field(
        default=None, description="Greatest age in steps of logits in a soft target. `null`: no limit."
    )
    bank: Bank = Field(default=Bank(), description="Store of the last logits.")
    logit_noise: NonNegativeFloat = Field(
        default=0.0,
        description="Standard deviation of Gaussian noise on the logits that a student sends. "
        "Not in the paper.",
    )
    wire_precision: Precision = Field(
        default="fp32",
        description="Number format of logits and soft targets in messages. 16 bits halve the traffic and "
        "round the values.",
    )
    teacher: Name | None = Field(
        default=None, description="Name of the student that does not learn, for method `teacher` only."
    )

    @property
    def own_method(self) -> OwnMethod | None:
        """The method of the user's own, if it is one."""
        if isinstance(self.method, str):
            return OwnMethod(name=self.method) if is_import_string(self.method) else None
        return self.method

    @property
    def method_name(self) -> str:
        """The method in a text."""
        return self.method if isinstance(self.method, str) else self.method.name

    @property
    def keeps_logits(self) -> bool:
        """Whether a soft target takes in logits of earlier steps."""
        return self.window != 1 and self.sends_target

    @property
    def sends_target(self) -> bool:
        """Whether the coordinator's answer carries a soft target."""
        own = self.own_method
        return METHODS[self.method_name].target is not None if own is None else not own.peers

    @property
    def peers(self) -> bool:
        """Whether the students get each other's logits."""
        own = self.own_method
        return METHODS[self.method_name].peer_loss is not None if own is None else own.peers

    @property
    def needs_holdout(self) -> bool:
        """Whether the students are weighed by held-out samples."""
        return self.own_method is None and METHODS[self.method_name].holdout

    @property
    def needs_one_class(self) -> bool:
        """Whether a sample must have one true class."""
        return self.own_method is None and METHODS[self.method_name].one_class

    @model_validator(mode="after")
    def _peers_need_window_1(self) -> Distillation:
        if self.peers and self.window != 1:
            raise ValueError(
                f"method {self.method_name!r} learns from the peers' own logits of the same step, not from a "
                f"soft target: it needs window 1 (got {self.window!r}); method 'mean' goes with any window"
            )
        return self

    @model_validator(mode="after")
    def _teacher_goes_with_its_method(self) -> Distillation:
        taught = [name for name, method in METHODS.items() if method.teacher]
        if (self.method in taught) != (self.teacher is not None):
            raise ValueError(
                f"method {' or '.join(map(repr, taught))} and the field teacher go together "
                f"(method is {self.method!r}, teacher is {self.teacher!r})"
            )
        return self


Distillation.__doc__ = (Distillation.__doc__ or "").replace(
    "METHODS", "\n    ".join(f"- `{name}`: {method.source}" for name, method in METHODS.items())
)


class Checkpoint(Strict):
    """Checkpoints of the whole cohort. The last epoch always ends with one."""

    every_epochs: PositiveInt = Field(default=1, description="Epochs from one checkpoint to the next.")
    keep: PositiveInt = Field(default=2, description="Number of the latest checkpoints to keep.")


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
        default=8, description="Failures of the whole run that are allowed. One more ends the run."
    )
    min_students: PositiveInt = Field(
        default=2, description="Students that must remain for `continue`. With fewer, the others wait."
    )
    max_bad_steps: NonNegativeInt = Field(
        default=10, description="Skipped steps in a row that are allowed. One more is a failure."
    )

    @property
    def allowed(self) -> int:
        """Number of failures that do not end the run."""
        return 0 if self.policy == "stop" else self.max_failures


class Limits(Strict):
    """Limits of every wait, in seconds: 30 days at most. A wait beyond its limit is an error."""

    startup_s: Seconds = Field(
        default=300.0, description="Seconds for all processes to start and to form the cohort."
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
