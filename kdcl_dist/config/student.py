"""One student of a recipe: its network, optimiser, schedule, workers and resources."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from kdcl_dist.config.base import Name, Precision, Seed, Strict
from kdcl_dist.config.class_weights import ClassWeights
from kdcl_dist.config.data import Transform
from kdcl_dist.config.model import ModelSpec, check_url, is_url
from kdcl_dist.config.optim import SGD, Optimizer
from kdcl_dist.config.own_data import OwnData
from kdcl_dist.config.schedules import Cosine, MultiStep, Poly, Schedule

__all__ = ["NO_MODEL", "Ema", "Resources", "Student", "Worker"]

#: The model of a student whose logits a file has.
NO_MODEL = "none"


#: Names of other parts of a run folder; files of a student with such a name would overwrite them.
RESERVED_NAMES = ("coordinator", "ensemble", "launcher", "manifest")


class Resources(Strict):
    """The resources of one worker of a student.

    With `gpu: auto` a worker takes a GPU where there is one, and shares it where there are fewer GPUs than
    workers; without GPUs it trains on the CPU. Each start of the run chooses anew, also `--resume` on another
    machine. Workers with a number choose first.

    On both launchers each worker takes what its own student asks for. On Ray the cohort starts some seconds
    later for each further combination of `cpu` and `gpu` in it.
    """

    cpu: PositiveInt = Field(default=1, description="CPU cores, and threads of the worker.")
    gpu: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = Field(
        default="auto", description="Share of one GPU. `0`: the CPU; `auto`: a GPU if there is one."
    )

    def gpu_share(self, auto: float) -> float:
        """The share of a GPU as a number: `auto` stands for that number here."""
        return auto if isinstance(self.gpu, str) else self.gpu


class Ema(Strict):
    """An exponential moving average of a student's weights, with which the student is tested too.

    After each step of the optimiser, average = decay * average + (1 - decay) * weights; the first step sets
    it. Running statistics are averaged as well.
    """

    decay: float = Field(default=0.9999, ge=0, lt=1, description="Share of the average that each step keeps.")
    warmup: bool = Field(
        default=True, description="The decay of step n is at most 1 - n^(-2/3), so that early weights fade."
    )


class Student(Strict):
    """One network of the cohort.

    `transfer` is for `weights` of another task: the last linear layer starts afresh. With `probe` only that
    layer learns, with `finetune` all layers do.

    A student with fewer `epochs` than the run ends its schedule there, and goes on teaching as it is. With
    `from_epoch` a student joins a cohort that trains already, and with `until_epoch` it leaves the others
    ([joining and leaving](joining.md)).

    A `frozen` student only teaches, from its `weights`: it runs in evaluation mode, without a backward pass
    and without an optimiser. `precision`, `compile`, `replicas` and `resources` are those of its forward
    passes.

    With `logits` and no other field than `name`, a student is a file of stored logits. It only teaches, and
    has no process, no GPU and no part in a checkpoint: the coordinator reads the rows of each step.

    A student whose `model` is a URL is a network that a server computes ([serving](serving.md)). It is
    frozen, and has no weights and no GPU here.

    `channels_last` and `compile` make the training steps faster on many GPUs, and change last bits of the
    results ([GPUs](gpu.md)).
    """

    name: Name = Field(description="Name of the student, unlike that of any other.")
    model: ModelSpec = Field(
        default=NO_MODEL,
        description="A built-in network (`kdcl models`), a library's (`torchvision:`, `timm:` or `hf:` "
        "and its name), an import string `package.module:factory`, or the URL of a [server](serving.md). "
        "`none`: a file of `logits`.",
    )
    logits: str | None = Field(
        default=None,
        description="File of [stored logits](stored-logits.md), in place of a network. `null`: none.",
    )
    seed: Seed | None = Field(
        default=None,
        description="Seed of the initial weights and of the student's random numbers. `null`: derived from "
        "the run's seed and the student's index.",
    )
    weights: str | None = Field(
        default=None,
        description="[Initial weights](models.md#weights-of-a-file): a file of `torch.save`, of safetensors, "
        "or a student's part of a checkpoint. `null`: random.",
    )
    frozen: bool = Field(
        default=False,
        description="Whether the student never learns. It needs `weights`; the teachers of method `teacher` "
        "are frozen anyway.",
    )
    transfer: Literal["probe", "finetune"] | None = Field(
        default=None,
        description="How the student learns from `weights` of another task.",
    )
    augment: list[Transform] | None = Field(
        default=None, description="Transforms of this student's training view. `null`: `data.augment`."
    )
    data: OwnData | None = Field(
        default=None,
        description="Training samples of the student's own, from which it learns. `null`: all.",
    )
    epochs: PositiveInt | None = Field(
        default=None,
        description="Epochs in which the student learns, at most the run's. `null`: those in which it takes "
        "part.",
    )
    from_epoch: PositiveInt = Field(
        default=1, description="First epoch of the run, from 1, in which the student takes part."
    )
    until_epoch: PositiveInt | None = Field(
        default=None,
        description="Last epoch of the run, from 1, in which the student takes part. `null`: the run's.",
    )
    optimizer: Optimizer = Field(default=SGD(), description="The optimiser.")
    schedule: Schedule = Field(default=MultiStep(), description="The learning-rate schedule.")
    clip_grad_norm: PositiveFloat | None = Field(
        default=None,
        description="Greatest norm of the gradient of all parameters together; a longer gradient is "
        "shortened to it. `null`: no limit.",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the label that all classes have alike in the cross-entropy (Szegedy et al., "
        "2016). Soft targets stay as they are.",
    )
    class_weights: ClassWeights = Field(
        default=None,
        description="Factor of each class in the cross-entropy, by the name of the class; `balanced`: in "
        "inverse proportion to its training samples ([formula](mixing.md#class-weights)). `null`: 1.",
    )
    ema: Ema | None = Field(
        default=None, description="Average of the weights over the steps, tested and saved beside them."
    )
    precision: Precision = Field(default="fp32", description="Number format of the forward pass.")
    channels_last: bool = Field(
        default=False, description="Memory layout with the channels of a pixel side by side."
    )
    compile: bool = Field(default=False, description="`torch.compile` of the training steps.")
    replicas: PositiveInt = Field(
        default=1, description="Workers that share each step's samples evenly and average their gradients."
    )
    sync_batchnorm: bool = Field(
        default=False, description="Batch norm takes its statistics over all replicas."
    )
    accelerator: str | None = Field(
        default=None, description="Type of the GPU to train on, such as `A100`; on Ray only. `null`: any."
    )
    resources: Resources = Field(default=Resources(), description="Resources of each worker.")

    @property
    def lacks_weights(self) -> bool:
        """Whether the student would begin with random weights, here or on its server."""
        return self.weights is None and self.logits is None and not is_url(self.model)

    @property
    def sees_part(self) -> bool:
        """Whether the student sees not all training samples."""
        return self.data is not None and self.data.sees == "own"

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value.lower() in RESERVED_NAMES:
            raise ValueError(f"{', '.join(RESERVED_NAMES)} are names of other parts of a run")
        return value

    @model_validator(mode="before")
    @classmethod
    def _served_network_is_frozen(cls, value: Any) -> Any:
        """A served network has other defaults: it is frozen, and needs no GPU here."""
        model, resources = (
            (value.get("model"), value.get("resources", {})) if isinstance(value, dict) else ("", {})
        )
        if not isinstance(model, str) or not is_url(model) or not isinstance(resources, dict):
            return value
        return {"frozen": True, **value, "resources": {"gpu": 0, **resources}}

    @model_validator(mode="after")
    def _served_network_is_computed_elsewhere(self) -> Student:
        if not is_url(self.model):
            return self
        check_url(self.model)
        for field, value, needed in (
            ("frozen", self.frozen, True),
            ("weights", self.weights, None),
            ("precision", self.precision, "fp32"),
            ("compile", self.compile, False),
            ("channels_last", self.channels_last, False),
            ("resources.gpu", self.resources.gpu, 0),
        ):
            if value != needed:
                raise ValueError(
                    f"{field}: the network is computed by {self.model!r}: leave it out (got {value!r})"
                )
        return self

    @model_validator(mode="after")
    def _is_a_network_or_a_file(self) -> Student:
        if (self.model == NO_MODEL) != (self.logits is not None):
            raise ValueError(
                "a student needs one of model and logits, a network or a file of its logits (got model "
                f"{self.model!r}, logits {self.logits!r})"
            )
        for name, field in type(self).model_fields.items():
            given = name not in ("name", "logits") and getattr(self, name) != field.default
            if self.logits is not None and given:
                raise ValueError(f"{name}: the student is a file of logits ({self.logits!r}): leave it out")
        return self

    @model_validator(mode="after")
    def _rate_falls(self) -> Student:
        schedule, lr = self.schedule, self.optimizer.lr
        if isinstance(schedule, (Cosine, Poly)) and schedule.min_lr > lr:
            raise ValueError(f"schedule.min_lr: {schedule.min_lr} is above optimizer.lr, {lr}")
        return self

    @model_validator(mode="after")
    def _takes_part(self) -> Student:
        if self.until_epoch is not None and self.until_epoch < self.from_epoch:
            raise ValueError(f"until_epoch: {self.until_epoch} is before from_epoch, {self.from_epoch}")
        return self

    @model_validator(mode="after")
    def _batchnorm_can_be_compiled(self) -> Student:
        if self.compile and self.sync_batchnorm:
            raise ValueError(
                "compile: true and sync_batchnorm: true do not go together: torch.compile cannot follow the "
                "messages between replicas inside the network"
            )
        return self

    @model_validator(mode="after")
    def _transfer_has_weights(self) -> Student:
        if self.transfer is not None and self.weights is None:
            raise ValueError(
                f"transfer: {self.transfer!r} begins from weights of another task (weights is null)"
            )
        return self

    def takes_part(self, epoch: int) -> bool:
        """Whether the student takes part in an epoch, from 0."""
        return self.from_epoch - 1 <= epoch and not self.has_left(epoch)

    def has_left(self, epoch: int) -> bool:
        """Whether the student's last epoch is before an epoch, from 0."""
        return self.until_epoch is not None and self.until_epoch <= epoch


class Worker(NamedTuple):
    """One worker of the cohort.

    Attributes:
        student: index of the student in the cohort.
        replica: index of the replica within the student.
        name: the student's name, followed by "/replica" if the student has several.
    """

    student: int
    replica: int
    name: str
