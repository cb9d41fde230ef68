"""The distillation losses that a recipe can name, with their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeFloat, Tag, model_validator

from kdcl_dist.config.base import NAME_REQUIRED, OWN, Own, Strict, kind_of, named
from kdcl_dist.distillation.divergences import LOSSES
from kdcl_dist.utils.import_strings import IMPORT_STRING

__all__ = ["KL", "BalancedLoss", "DecoupledLoss", "Loss", "OwnLoss", "StandardisedLoss"]


class KL(Strict):
    """The loss of equation 1: T^2 KL(p || q), of a soft target p and a student's probabilities q at T."""

    name: Literal["kl"] = Field(default="kl", description="The loss; may be left out.")


class StandardisedLoss(Strict):
    """Standardised logits (Sun et al., CVPR 2024), for students that shall not copy the size of the logits.

    The student's and the target's logits get mean 0 and standard deviation 1 over the classes of each sample,
    and then KL's loss at `temperature`, which is the paper's base temperature. The target's logits are the
    logarithms of its probabilities. The paper's code has a `weight` of 9 at T = 2.
    """

    model_config = NAME_REQUIRED

    name: Literal["standardised"] = Field(default="standardised", description="The loss.")


class DecoupledLoss(Strict):
    """DKD, decoupled knowledge distillation (Zhao et al., CVPR 2022): T^2 (alpha TCKD + beta NCKD).

    TCKD is the divergence of (true class, all others), NCKD that of the probabilities among the others.
    KL(p || q) is TCKD + (1 - p_t) NCKD, with p_t the target's probability of the true class. The paper's code
    raises the weight of both over the first 20 epochs; here it is constant.
    """

    model_config = NAME_REQUIRED

    name: Literal["dkd"] = Field(default="dkd", description="The loss.")
    alpha: NonNegativeFloat = Field(default=1.0, description="Weight of TCKD.")
    beta: NonNegativeFloat = Field(
        default=8.0, description="Weight of NCKD; in the paper's code 0.5 on ImageNet, 2 to 8 on CIFAR-100."
    )


class BalancedLoss(Strict):
    """BD-KD, balanced divergences (Amara et al., 2022): T^2 (a KL(p || q) + b KL(q || p)).

    The entropies of a sample decide. Where the student is less certain than its target, b is `larger` and a
    is `smaller`; elsewhere a is `larger` and b is `smaller`. The paper gives the rule to the small network of
    a pair, here each student has it; the defaults of the weights are this package's.
    """

    model_config = NAME_REQUIRED

    name: Literal["bdkd"] = Field(default="bdkd", description="The loss.")
    larger: NonNegativeFloat = Field(default=2.0, description="Weight of the divergence that is favoured.")
    smaller: NonNegativeFloat = Field(default=1.0, description="Weight of the other one.")

    @model_validator(mode="after")
    def _in_order(self) -> BalancedLoss:
        if self.smaller > self.larger:
            raise ValueError(f"smaller: {self.smaller} is more than larger, which is {self.larger}")
        return self


class OwnLoss(Own):
    """A loss of your own: `my_losses:hard`, or with arguments `{name: my_losses:hard, power: 2}`.

    Each student calls the function with `log_q_BC` and `log_p_BC`, its own and the target's log-probabilities
    at T, with `labels_B`, T, and the fields that this table does not list as its arguments. It returns the
    divergence, summed over its samples; `distillation_loss` multiplies it by T^2 and divides it by the batch.
    With `data.mixup` or `data.cutmix` the labels are class probabilities (B, C).
    """


if TYPE_CHECKING:
    _Name = str
else:
    _Name = Literal[tuple(LOSSES)] | Annotated[str, Field(pattern=rf"^{IMPORT_STRING}$")]


def _with_name(loss: Any) -> Any:
    """A name alone as a mapping."""
    if isinstance(loss, (str, dict, Strict)):
        return {"name": loss} if isinstance(loss, str) else loss
    raise ValueError("must be the name of a loss, such as dkd, or have one: {name: dkd, beta: 2.0}")


_Loss = Annotated[
    Annotated[KL, Tag("kl")]
    | Annotated[StandardisedLoss, Tag("standardised")]
    | Annotated[DecoupledLoss, Tag("dkd")]
    | Annotated[BalancedLoss, Tag("bdkd")]
    | Annotated[OwnLoss, Tag(OWN)],
    Discriminator(kind_of),
    named("kl", *LOSSES),
]
Loss = Annotated[_Loss, BeforeValidator(_with_name, json_schema_input_type=_Name | _Loss)]
