"""The loss of a method that teaches student by student; one of the user's own is checked at every call.

Shapes: P peers, B batch, C classes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kdcl_dist.config.distillation import Distillation
from kdcl_dist.distillation.methods import METHODS, Context, PeerLoss
from kdcl_dist.errors import MethodError, of_user_code

__all__ = ["load_peer_loss"]


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
        _check(loss, logits_BC.requires_grad)
        if context.state:
            raise ValueError("context.state is not kept with peers: the function runs in every student")
    return loss.float()


def _check(loss: object, learns: bool) -> None:
    """See that it is a finite scalar, which a student that learns can learn from."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"a loss is needed, a tensor of shape () (got {type(loss).__name__})")
    if not loss.is_floating_point() or loss.shape != ():
        got = f"{loss.dtype} {tuple(loss.shape)}"
        raise ValueError(f"a loss is needed, a floating-point tensor of shape () (got {got}): take its mean")
    if not bool(torch.isfinite(loss)):
        raise ValueError(f"the loss is {float(loss.detach())}")
    if learns and not loss.requires_grad:
        raise ValueError("the loss has no gradient: compute it from logits_BC, with torch's operations")
