"""torch.compile for one student's steps; its own state stays that of the plain network.

Compiled are the passes of training steps, whose shape never changes. Tests and checkpoints see the network
itself: a last, smaller batch would be compiled for itself, and names would begin with `_orig_mod.`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

__all__ = ["compiled"]


def compiled(network: nn.Module, threads: int) -> nn.Module:
    """The network with the same parameters and buffers, compiled when it is first called.

    Args:
        network: stays as it is.
        threads: processes that compile side by side; with 1 it happens in this one.
    """
    # Imported here: it takes seconds, and most runs do not compile.
    from torch._functorch import config as autograd
    from torch._inductor import config as inductor

    inductor.compile_threads = threads
    # The conflict of gradients goes through the graph before the step itself does, so it must survive.
    autograd.donated_buffer = False
    return cast(nn.Module, torch.compile(network))
