"""torch.compile for the training steps of one student.

Only the passes of training steps are compiled, whose shape never changes. Tests and checkpoints use the plain
network: a smaller last batch would need a compilation of its own, and the names of the state would begin with
`_orig_mod.`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

__all__ = ["compiled"]


def compiled(network: nn.Module, threads: int) -> nn.Module:
    """A compiled module that shares the parameters and buffers of a network; its first call compiles.

    Args:
        network: the plain network, which does not change.
        threads: number of processes that compile; with 1, this process does.
    """
    # This import takes seconds, and most runs do not compile.
    from torch._functorch import config as autograd
    from torch._inductor import config as inductor

    inductor.compile_threads = threads
    # The conflict of gradients uses the graph before the step itself does, so the graph must survive.
    autograd.donated_buffer = False
    return cast(nn.Module, torch.compile(network))
