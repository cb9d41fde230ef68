"""The distillation losses: an entry of `LOSSES` for each, and the functions of the entries.

A loss is a divergence of a student from its target, or from a peer. It sees both as log-probabilities at the
temperature T: log p, and log q = log softmax(z / T) of the student's logits z. Up to a constant of each
sample they are logits divided by T. `kdcl_dist.distillation.losses.distillation_loss` multiplies the
divergence by T^2 and divides it by the batch.

Recipes are checked without torch, so a function imports what it needs when it is called.

Shapes: B samples, C classes, D = C - 1 classes that are not the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOSSES", "Divergence", "Loss", "balanced", "decoupled", "kl", "standardised"]


class Divergence(Protocol):
    """A divergence of a student from a target that is a constant."""

    def __call__(
        self, log_q_BC: Tensor, log_p_BC: Tensor, labels_B: Tensor | None, temperature: float, /
    ) -> Tensor:
        """The divergence in nats, summed over the samples, with a gradient to `log_q_BC`.

        A student gives its labels: the classes, or class probabilities (B, C) where samples are mixed.
        """


@dataclass(frozen=True)
class Loss:
    """One entry: what a recipe and its checks must know of a loss, and its function.

    Attributes:
        measure: what it measures, as the recipe's reference says it.
        function: a `Divergence`, once it has the fields of the loss as keyword arguments.
        one_class: whether a sample must have one true class, which a mixed one has not.
    """

    measure: str
    function: Callable[..., Tensor]
    one_class: bool = False


def kl(log_q_BC: Tensor, log_p_BC: Tensor, labels_B: Tensor | None, temperature: float) -> Tensor:
    """KL(p || q) (Hinton et al., 2015; KDCL, eq. 1)."""
    from torch.nn.functional import kl_div

    return kl_div(log_q_BC, log_p_BC, reduction="sum", log_target=True)


def standardised(log_q_BC: Tensor, log_p_BC: Tensor, labels_B: Tensor | None, temperature: float) -> Tensor:
    """KL(softmax(Z(v) / T) || softmax(Z(z) / T)), Z(x) = (x - mean(x)) / std(x) over the classes.

    Sun et al., CVPR 2024, algorithms 1 and 2; T is their base temperature, and z and v are the student's and
    the target's logits. Z(a x + b) = Z(x) for a > 0, so Z(log q) = Z(z) and Z(log p) = Z(v) at any T. The
    target of method `general` is a mixture of probabilities: its log-probabilities are its logits.
    """
    log_q_BC, log_p_BC = ((_z_scores(x_BC) / temperature).log_softmax(dim=1) for x_BC in (log_q_BC, log_p_BC))
    return kl(log_q_BC, log_p_BC, labels_B, temperature)


def decoupled(
    log_q_BC: Tensor,
    log_p_BC: Tensor,
    labels_B: Tensor | None,
    temperature: float,
    *,
    alpha: float,
    beta: float,
) -> Tensor:
    """alpha * TCKD + beta * NCKD: decoupled knowledge distillation (Zhao et al., CVPR 2022, eq. 7).

    TCKD = KL(b(p) || b(q)) with b(p) = (p_t, 1 - p_t) of the true class t, and NCKD = KL(r(p) || r(q)) with
    r(p)_i = p_i / (1 - p_t) of the other classes. KL(p || q) is TCKD + (1 - p_t) NCKD (eq. 6).
    """
    if labels_B is None:
        raise ValueError("labels_B: the loss needs the true classes (got None)")
    (binary_q_B2, rest_q_BD), (binary_p_B2, rest_p_BD) = (_split(x, labels_B) for x in (log_q_BC, log_p_BC))
    target_class = kl(binary_q_B2, binary_p_B2, labels_B, temperature)
    return alpha * target_class + beta * kl(rest_q_BD, rest_p_BD, labels_B, temperature)


def balanced(
    log_q_BC: Tensor,
    log_p_BC: Tensor,
    labels_B: Tensor | None,
    temperature: float,
    *,
    larger: float,
    smaller: float,
) -> Tensor:
    """a KL(p || q) + b KL(q || p), a and b by the entropies of a sample: BD-KD (Amara et al., 2022).

    Where the student is less certain than its target, H(q) > H(p), b = `larger` and a = `smaller`: the
    reverse divergence narrows q to the modes of p. Elsewhere a = `larger` and b = `smaller`: the forward
    divergence widens q to all of p.
    """
    p_BC, q_BC = log_p_BC.exp(), log_q_BC.exp()
    forward_B = (p_BC * (log_p_BC - log_q_BC)).sum(dim=1)
    reverse_B = (q_BC * (log_q_BC - log_p_BC)).sum(dim=1)
    less_certain_B = (q_BC * log_q_BC).sum(dim=1) < (p_BC * log_p_BC).sum(dim=1)
    favoured_B, other_B = (
        reverse_B.where(less_certain_B, forward_B),
        forward_B.where(less_certain_B, reverse_B),
    )
    return (larger * favoured_B + smaller * other_B).sum()


#: The losses by name, in the order of the recipe's reference. The fields of each are in
#: `kdcl_dist/config/losses.py`.
LOSSES: dict[str, Loss] = {
    "kl": Loss("the Kullback-Leibler divergence of equation 1.", kl),
    "standardised": Loss("that of standardised logits (Sun et al., CVPR 2024).", standardised),
    "dkd": Loss(
        "its parts, true class and others, with weights of their own (Zhao et al., CVPR 2022).",
        decoupled,
        one_class=True,
    ),
    "bdkd": Loss("it and its reverse, balanced by each sample's entropies (Amara et al., 2022).", balanced),
}


def _z_scores(x_BC: Tensor) -> Tensor:
    """The rows with mean 0 and standard deviation 1; rows of equal numbers become 0, without gradient."""
    x_BC = x_BC - x_BC.detach().amax(dim=1, keepdim=True)  # equal numbers are 0 now, so their mean is exact
    deviation_B1 = x_BC.std(dim=1, correction=0, keepdim=True)
    return (x_BC - x_BC.mean(dim=1, keepdim=True)) / deviation_B1.where(deviation_B1 > 0, float("inf"))


def _split(log_p_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of b(p), (B, 2), and of r(p), (B, D), of `decoupled`."""
    import torch

    true_B1 = labels_B[:, None]
    places_D = torch.arange(log_p_BC.shape[1] - 1, device=log_p_BC.device)
    others_BD = log_p_BC.gather(1, places_D + (places_D >= true_B1))
    others_B1 = others_BD.logsumexp(dim=1, keepdim=True)
    return torch.cat([log_p_BC.gather(1, true_B1), others_B1], dim=1), others_BD - others_B1
