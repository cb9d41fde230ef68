"""A network that only waits, as a host waits for a device of its own, for `own_devices`.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

__all__ = ["Waiting", "steps_of"]

#: Pixels of an image that the logits depend on: few, so that the network takes hardly any processor time.
PIXELS = 8
#: The forward pass's share of the waiting.
FORWARD = 0.35


class Waiting(nn.Module):
    """A linear classifier whose passes sleep.

    Args:
        num_classes: classes of the data.
        milliseconds: that the forward and the backward pass of a training step sleep together.
        notes: folder in which each process notes the begin of its training steps; None: nowhere.
    """

    def __init__(self, num_classes: int, milliseconds: float, notes: str | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(PIXELS, num_classes)
        self.forward_s, self.backward_s = FORWARD * milliseconds / 1e3, (1 - FORWARD) * milliseconds / 1e3
        self.notes = notes

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The logits (B, C)."""
        began_s = time.perf_counter()
        logits_BC: Tensor = self.linear(images_BCHW.flatten(1)[:, :PIXELS])
        if logits_BC.requires_grad:
            if self.notes is not None:
                self._note(self.notes, began_s)
            time.sleep(self.forward_s)
            logits_BC.register_hook(lambda _gradient: time.sleep(self.backward_s))  # type: ignore[no-untyped-call]
        return logits_BC

    def _note(self, folder: str, began_s: float) -> None:
        with Path(folder, str(os.getpid())).open("a") as file:
            file.write(f"{began_s}\n")


def steps_of(notes: Path) -> list[list[float]]:
    """Seconds from the begin of each training step to that of the next, by process."""
    began = [[float(line) for line in path.read_text().split()] for path in sorted(notes.iterdir())]
    return [[after - before for before, after in pairwise(own)] for own in began]
