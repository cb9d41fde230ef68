"""A student's network as it is before its first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from kdcl_dist.config.student import Student
from kdcl_dist.data.samples import Inputs
from kdcl_dist.errors import ModelError
from kdcl_dist.models.lazy import has_lazy_layers, initialise
from kdcl_dist.models.pretrained import load_weights
from kdcl_dist.models.registry import prepare
from kdcl_dist.models.transfer import freeze_body, head_of
from kdcl_dist.utils.seeding import Purpose, derive

__all__ = ["InitialNetwork", "initial_network"]


class InitialNetwork(NamedTuple):
    """A network with its initial weights.

    head: the name of the layer that starts afresh, with `transfer`. compiles: whether its training steps are
    compiled.
    """

    model: nn.Module
    head: str | None
    compiles: bool


def initial_network(
    spec: Student,
    seed: int,
    classes: int,
    channels: int | None,
    example: Callable[[], Inputs] | None,
    *,
    resumed: bool,
) -> InitialNetwork:
    """The network of a student with its initial weights, on the CPU.

    Args:
        spec: the student in the recipe.
        seed: of its random numbers.
        classes: of the data.
        channels: of its images; None: its samples are no images.
        example: gives a few samples of the student's; a network with lazy layers needs it.
        resumed: whether a state is loaded next, so that the recipe's initial weights are not needed.

    Raises:
        ModelError: the network or its initial weights cannot be built.
    """
    torch.manual_seed(derive(seed, Purpose.INITIAL_WEIGHTS))
    network, compiles = prepare(spec.model, classes, channels)
    if has_lazy_layers(network):
        if example is None:
            raise ModelError(f"model {spec.model!r} has lazy layers, whose sizes the data's samples give")
        inputs = example()  # which seeds torch's generator
        torch.manual_seed(derive(seed, Purpose.INITIAL_WEIGHTS, 1))
        initialise(network, str(spec.model), inputs)
    head = head_of(network, str(spec.model), classes) if spec.transfer else None
    if spec.weights is not None and not resumed:
        load_weights(network, spec.weights, fresh=head)
    if head is not None and spec.transfer == "probe":
        freeze_body(network, head)
    # torch.compile cannot follow the messages of synchronised batch norm.
    return InitialNetwork(network, head, spec.compile or (compiles and not spec.sync_batchnorm))
