"""The section `distillation` of a recipe: the method, and the store of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from kdcl_dist.config.base import Name, Own, Precision, Strict, named
from kdcl_dist.config.class_weights import Weights, check_weights
from kdcl_dist.config.losses import KL, Loss
from kdcl_dist.distillation.divergences import LOSSES
from kdcl_dist.distillation.methods import METHODS
from kdcl_dist.utils.import_strings import IMPORT_STRING, is_import_string

__all__ = ["Bank", "Distillation", "OwnMethod", "RecordLogits"]

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[tuple(METHODS)]
ImportString = Annotated[str, Field(pattern=rf"^{IMPORT_STRING}$")]


def _check_teacher(value: Any) -> Any:
    """See that the value is one of both forms; a union would tell an error of each."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        check_weights(value)
    elif not isinstance(value, str | None):
        raise ValueError(
            "must be a student's name, or a weight for each of several by its name, as {old: 1, large: 2}"
        )
    return value


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


class RecordLogits(Strict):
    """Files of the logits of the training steps, with which this cohort teaches a later one.

    The end of the run writes a file `logits/NAME.arrow` of each student named here into the run folder. It
    has the `data.views` views of each sample, and of a view the logits of the last step that showed it.
    """

    students: list[Name] = Field(
        default=["ensemble"],
        min_length=1,
        description="Names of students, and `ensemble` for the mean of the probabilities of all.",
    )
    top_k: PositiveInt | None = Field(
        default=None,
        description="Number of the largest logits to keep of each row, beside the total of the other "
        "classes. `null`: all.",
    )
    dtype: Literal["fp32", "fp16"] = Field(
        default="fp32", description="Number format of the logits. `fp16` halves files and memory."
    )

    @property
    def number_format(self) -> Literal["float32", "float16"]:
        """The name of `dtype` in a file."""
        return "float32" if self.dtype == "fp32" else "float16"


class Distillation(Strict):
    """The soft target, and its share of the loss. Equations and sections are those of the KDCL paper.

    The methods, by what a student learns from beside the labels:

    METHODS
    - an import string: the soft target or the loss that a function of your own forms.

    The losses, by what they measure between that and the student; with `dml` between two students:

    LOSSES
    - an import string: what a function of your own computes.

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
    loss: Loss = Field(default=KL(), description="What the distillation loss measures.")
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
    record_logits: RecordLogits | None = Field(
        default=None, description="Files of the training logits to write. `null`: none."
    )
    threads: PositiveInt | None = Field(
        default=None,
        description="Threads of the coordinator that solve `linear`; no result depends on them. `null`: one "
        "for each of its cores, at most 4.",
    )
    logit_noise: NonNegativeFloat = Field(
        default=0.0,
        description="Standard deviation of Gaussian noise on the logits that a student sends. "
        "Not in the paper.",
    )
    wire_precision: Precision = Field(
        default="fp32",
        description="Number format of logits and soft targets in messages. 16 bits halve the traffic and "
        "round the values, also those of tests.",
    )
    teacher: Annotated[Name | Weights | None, BeforeValidator(_check_teacher)] = Field(
        default=None,
        description="Name of the frozen student that teaches, or weights of several by their names, such as "
        "`{old: 2, large: 1}`; for method `teacher` only.",
    )

    @property
    def teachers(self) -> dict[str, float]:
        """The weights of the frozen students that teach alone, by name."""
        return {self.teacher: 1.0} if isinstance(self.teacher, str) else dict(self.teacher or {})

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
    def pauses(self) -> bool:
        """Whether a student may learn nothing from a step."""
        return self.own_method is None and METHODS[self.method_name].pauses

    @property
    def needs_holdout(self) -> bool:
        """Whether the students are weighed by held-out samples."""
        return self.own_method is None and METHODS[self.method_name].holdout

    @property
    def one_class_reason(self) -> str | None:
        """Why a sample must have one true class, and what else to choose; None: it may be mixed."""
        one_class = "the one true class, which a mixed sample has not; use"
        if self.own_method is None and METHODS[self.method_name].one_class:
            return (
                f"method {self.method_name!r} takes logits relative to {one_class} 'linear', 'naive' or "
                "another method"
            )
        if self.loss.name in LOSSES and LOSSES[self.loss.name].one_class:
            return f"loss {self.loss.name!r} separates the others from {one_class} 'kl' or another loss"
        return None

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
        if (self.method in taught) != bool(self.teachers) or self.teacher == {}:
            raise ValueError(
                f"method {' or '.join(map(repr, taught))} and the field teacher go together "
                f"(method is {self.method!r}, teacher is {self.teacher!r})"
            )
        return self


def _items(descriptions: dict[str, str]) -> str:
    return "\n    ".join(f"- `{name}`: {text}" for name, text in descriptions.items())


Distillation.__doc__ = (
    (Distillation.__doc__ or "")
    .replace("METHODS", _items({name: method.source for name, method in METHODS.items()}))
    .replace("LOSSES", _items({name: loss.measure for name, loss in LOSSES.items()}))
)
