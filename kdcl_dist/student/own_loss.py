"""The losses of a recipe, as a student calls them; those of the user's own are checked at every call.

Shapes: P peers, B batch, C classes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kdcl_dist.config.distillation import Distillation
from kdcl_dist.config.losses import OwnLoss
from kdcl_dist.distillation.divergences import LOSSES, Divergence
from kdcl_dist.distillation.methods import METHODS, Context, PeerLoss
from kdcl_dist.errors import MethodError, of_user_code

__all__ = ["load_divergence", "load_peer_loss"]


def load_divergence(distillation: Distillation) -> Divergence:
    """The recipe's loss; one of the user's own raises MethodError for whatever is wrong with it.

    Raises:
        MethodError: the import string names nothing that can be called.
    """
    loss = distillation.loss
    if not isinstance(loss, OwnLoss):
        return partial(LOSSES[loss.name].function, **loss.model_dump(exclude={"name"}))
    with of_user_code(MethodError, f"distillation.loss {loss.name!r} cannot be loaded"):
        function = loss.load()
    return partial(_divergence, loss.name, function)


def load_peer_loss(distillation: Distillation) -> PeerLoss | None:
    """The loss of the recipe's method; None if the method has a soft target for all, or none at all.

    One of the user's own raises MethodError for whatever is wrong with it.

    Raises:
        MethodError: the import string names nothing that can be called.
    """
    own = distillation.own_method
    if own is None:
        return METHODS[distillation.method_name].peer_loss
    if not own.peers:
        return None
    with of_user_code(MethodError, f"distillation.method {own.name!r} cannot be loaded"):
        function = own.load()
    return partial(_loss, own.name, function)


def _divergence(
    name: str,
    function: Divergence,
    log_q_BC: Tensor,
    log_p_BC: Tensor,
    labels_B: Tensor | None,
    temperature: float,
) -> Tensor:
    with of_user_code(MethodError, f"distillation.loss {name!r}"):
        loss = function(log_q_BC, log_p_BC, labels_B, temperature)
        return _checked(loss, log_q_BC.requires_grad, "log_q_BC", "take its sum")


def _loss(
    name: str,
    function: PeerLoss,
    logits_BC: Tensor,
    peers_PBC: Tensor,
    labels_B: Tensor,
    temperature: float,
    context: Context,
) -> Tensor:
    with of_user_code(MethodError, f"distillation.method {name!r}, step {context.step}"):
        loss = function(logits_BC, peers_PBC, labels_B, temperature, context)
        if context.state:
            raise ValueError("context.state is not kept with peers: the function runs in every student")
        return _checked(loss, logits_BC.requires_grad, "logits_BC", "take its mean")


def _checked(loss: object, learns: bool, source: str, remedy: str) -> Tensor:
    """A finite scalar in float32, which a student that learns can learn from."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"a loss is needed, a tensor of shape () (got {type(loss).__name__})")
    if not loss.is_floating_point() or loss.shape != ():
        got = f"{loss.dtype} {tuple(loss.shape)}"
        raise ValueError(f"a loss is needed, a floating-point tensor of shape () (got {got}): {remedy}")
    if not bool(torch.isfinite(loss)):
        raise ValueError(f"the loss is {float(loss.detach())}")
    if learns and not loss.requires_grad:
        raise ValueError(f"the loss has no gradient: compute it from {source}, with torch's operations")
    return loss.float()
