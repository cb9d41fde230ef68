"""The exponential moving average of a network's weights, with which students are tested and exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdcl_dist.config.student import Ema

__all__ = ["AveragedWeights", "decay_at"]

#: The warm-up of timm's `ModelEmaV3`: after n updates the decay is at most 1 - n ** -POWER.
POWER = 2 / 3


def decay_at(ema: Ema, update: int) -> float:
    """The decay of an update, counted from 1; the first that is not skipped takes the weights as they are.

    As timm's `ModelEmaV3` with `warmup_gamma` 1 and `warmup_power` 2/3.
    """
    if update == 1:
        return 0.0
    return min(ema.decay, 1 - update**-POWER) if ema.warmup else ema.decay


class AveragedWeights:
    """The average of a network's state over the optimiser's steps (Polyak and Juditsky, 1992).

    It has every tensor of the network's `state_dict`, as timm's `ModelEmaV3`: parameters and floating buffers
    such as running statistics are averaged, in float32 at least; other buffers are copied.

    Args:
        ema: of the recipe.
        model: the network on its device, with the weights to begin from.

    Attributes:
        tensors: by their names in the network's `state_dict`.
        updates: number of updates so far, with those that were skipped.
        begun: 1 once an update was not skipped, else 0; on the device, since only that knows.
    """

    def __init__(self, ema: Ema, model: nn.Module) -> None:
        self.ema, self.updates = ema, 0
        self.tensors = {name: _precise(value).clone() for name, value in _tensors(model).items()}
        self.begun = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, model: nn.Module, skipped: Tensor) -> None:
        """Take in the weights after a step of the optimiser; the host does not wait for the device.

        Args:
            model: the network.
            skipped: 1 if the optimiser skipped the step, which then leaves the average as it is; else 0.
        """
        self.updates += 1
        taken, begun = 1 - skipped.double(), self.begun.to(skipped.device)
        share = taken * torch.where(begun > 0, 1 - decay_at(self.ema, self.updates), 1.0)
        self.begun = torch.maximum(begun, taken)
        own, live = list(self.tensors.values()), list(_tensors(model).values())
        averaged = [index for index, value in enumerate(own) if value.is_floating_point()]
        torch._foreach_lerp_(
            [own[index] for index in averaged],
            [live[index].to(own[index].dtype) for index in averaged],
            [share.to(own[index].dtype) for index in averaged],
        )
        for value, other in zip(own, live, strict=True):
            if not value.is_floating_point():
                value.copy_(other)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give the network the averaged weights for the block."""
        live = list(_tensors(model).values())
        kept = [value.clone() for value in live]
        with torch.no_grad():
            torch._foreach_copy_(live, list(self.tensors.values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, kept)

    def buffers(self, model: nn.Module) -> list[Tensor]:
        """The averages of the network's buffers, which differ between replicas."""
        return [self.tensors[name] for name, _ in model.named_buffers() if name in self.tensors]

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """The state of a checkpoint; its entry `model` loads strictly into the plain network."""
        return {
            "model": model.state_dict() | self.tensors,
            "updates": self.updates,
            "begun": bool(self.begun),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of `state_dict`."""
        for name, value in self.tensors.items():
            value.copy_(state["model"][name])
        self.updates = state["updates"]
        begun = state.get("begun", self.updates > 0)  # an older checkpoint does not know
        self.begun = torch.tensor(float(begun), dtype=torch.float64)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state, without the extra state that modules may have."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _precise(value: Tensor) -> Tensor:
    """A floating tensor in float32 at least."""
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
