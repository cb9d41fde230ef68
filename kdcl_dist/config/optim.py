"""The optimisers that a recipe can name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, PositiveFloat, Tag, model_validator

from kdcl_dist.config.base import NAME_REQUIRED, OWN, Own, Strict, kind_of, named

__all__ = ["SGD", "Adam", "AdamW", "Lamb", "Lion", "NAdamW", "Optimizer", "OwnOptimizer", "RMSprop"]

Decay = Annotated[float, Field(ge=0, lt=1)]


class Groups(Strict):
    """The fields of every optimiser: how it treats parameters of different kinds."""

    decay_norm_and_bias: bool = Field(
        default=True,
        description="Weight decay also of parameters with at most one dimension: biases, and norms' weights.",
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Factor of the learning rate from each layer to the one before it; the head has `lr`. "
        "`1`: all layers have it.",
    )


class SGD(Groups):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = Field(default="sgd", description="The optimiser; may be left out.")
    lr: PositiveFloat = Field(default=0.1, description="Learning rate, before the schedule.")
    momentum: Decay = Field(default=0.9, description="Factor of the past gradients at each step.")
    nesterov: bool = Field(default=False, description="Nesterov's momentum; needs a `momentum` above 0.")
    weight_decay: NonNegativeFloat = Field(
        default=5e-4, description="Factor of the weights that is added to their gradient."
    )

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true needs a momentum above 0 (momentum is 0)")
        return self


class RMSprop(Groups):
    """RMSprop, of PyTorch: the gradient is divided by the root of a running mean of its squares."""

    model_config = NAME_REQUIRED

    name: Literal["rmsprop"] = Field(default="rmsprop", description="The optimiser.")
    lr: PositiveFloat = Field(default=1e-2, description="Learning rate, before the schedule.")
    alpha: Decay = Field(default=0.99, description="Decay of the mean of the squares.")
    momentum: Decay = Field(default=0.0, description="Factor of the past updates at each step.")
    eps: PositiveFloat = Field(default=1e-8, description="Term that is added to the denominator.")
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="Factor of the weights that is added to their gradient."
    )


class Adam(Groups):
    """Adam."""

    model_config = NAME_REQUIRED

    name: Literal["adam"] = Field(default="adam", description="The optimiser.")
    lr: PositiveFloat = Field(default=1e-3, description="Learning rate, before the schedule.")
    beta1: Decay = Field(default=0.9, description="Decay of the mean of the gradients.")
    beta2: Decay = Field(default=0.999, description="Decay of the mean of their squares.")
    eps: PositiveFloat = Field(default=1e-8, description="Term that is added to the denominator.")
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="Factor of the weights that is added to their gradient."
    )


class AdamW(Adam):
    """AdamW: Adam with weight decay that is decoupled from the gradient."""

    name: Literal["adamw"] = Field(default="adamw", description="The optimiser.")  # type: ignore[assignment]
    weight_decay: NonNegativeFloat = Field(
        default=1e-2, description="Factor of the weights that each step subtracts, times the learning rate."
    )


class NAdamW(AdamW):
    """NAdamW: AdamW with Nesterov's momentum; PyTorch's NAdam with decoupled weight decay."""

    name: Literal["nadamw"] = Field(default="nadamw", description="The optimiser.")  # type: ignore[assignment]
    lr: PositiveFloat = Field(default=2e-3, description="Learning rate, before the schedule.")


class Lamb(AdamW):
    """LAMB, for large batches: AdamW whose step of each layer has a length relative to that of its weights.

    The implementation is timm's, which limits the norm of the gradient to 1, whatever `clip_grad_norm` says.
    It needs the extra `timm`.
    """

    name: Literal["lamb"] = Field(default="lamb", description="The optimiser.")  # type: ignore[assignment]
    eps: PositiveFloat = Field(default=1e-6, description="Term that is added to the denominator.")


class Lion(Groups):
    """Lion: the sign of a running mean of the gradient; its learning rate is a tenth of AdamW's.

    The implementation is timm's; it needs the extra `timm`.
    """

    model_config = NAME_REQUIRED

    name: Literal["lion"] = Field(default="lion", description="The optimiser.")
    lr: PositiveFloat = Field(default=1e-4, description="Learning rate, before the schedule.")
    beta1: Decay = Field(default=0.9, description="Share of the mean in the direction of a step.")
    beta2: Decay = Field(default=0.99, description="Decay of the mean of the gradients.")
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="Factor of the weights that each step subtracts, times the learning rate."
    )


class OwnOptimizer(Groups, Own):
    """Any optimiser, by its import string: `{name: torch.optim:Adagrad, lr: 0.01, lr_decay: 0.1}`.

    The class gets the parameters, `lr`, and the fields that this table does not list as its arguments.
    """

    lr: PositiveFloat = Field(description="Learning rate, before the schedule.")


Optimizer = Annotated[
    Annotated[SGD, Tag("sgd")]
    | Annotated[RMSprop, Tag("rmsprop")]
    | Annotated[Adam, Tag("adam")]
    | Annotated[AdamW, Tag("adamw")]
    | Annotated[NAdamW, Tag("nadamw")]
    | Annotated[Lamb, Tag("lamb")]
    | Annotated[Lion, Tag("lion")]
    | Annotated[OwnOptimizer, Tag(OWN)],
    Discriminator(kind_of),
    named("sgd", "rmsprop", "adam", "adamw", "nadamw", "lamb", "lion"),
]
