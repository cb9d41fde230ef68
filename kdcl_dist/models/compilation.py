"""torch.compile for the training steps of one student.

Only the passes of training steps are compiled, whose shape never changes. Tests and checkpoints use the plain
network: a smaller last batch would need a compilation of its own, and the names of the state would begin with
`_orig_mod.`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["compiled", "keep_graphs", "uncompiled"]


def uncompiled(network: nn.Module) -> tuple[nn.Module, bool]:
    """A network without the compilation that it brings, and whether it brought any.

    `torch.compile(net)` is a wrapper, which would put `_orig_mod.` into the names of the state;
    `net.compile()` is none. Both are taken off, also from the network's parts.
    """
    holder, found = nn.Sequential(network), False
    for module in list(holder.modules()):
        found |= module._compiled_call_impl is not None
        module._compiled_call_impl = None
        for name, part in module._modules.items():
            while isinstance(inner := getattr(part, "_orig_mod", None), nn.Module):
                module._modules[name] = part = inner
                found = True
    return holder[0], found


def keep_graphs() -> None:
    """Let compiled passes keep their graph: the conflict of gradients uses it before the step itself does.

    A network can compile parts of its passes by itself.
    """
    from torch._functorch import config

    config.donated_buffer = False


def compiled(network: nn.Module, threads: int) -> nn.Module:
    """A compiled module that shares the parameters and buffers of a network; its first call compiles.

    Args:
        network: the plain network, which does not change.
        threads: number of processes that compile; with 1, this process does.
    """
    # This import takes seconds, and most runs do not compile.
    from torch._inductor import config as inductor

    inductor.compile_threads = threads
    return cast(nn.Module, torch.compile(_Whole(network)))


class _Whole(nn.Module):
    """A network in a module, so that its hooks are compiled as well, which else are frames of their own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """What the network gives."""
        logits: Tensor = self.network(*inputs, **named)
        return logits
