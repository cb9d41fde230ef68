"""A perceptron for the rows of a table.

Shapes: B rows, F columns.
"""

from __future__ import annotations

from torch import Tensor, nn


class Perceptron(nn.Module):
    """Layers of one width; the first takes as many columns as the table has."""

    def __init__(self, num_classes: int, width: int, layers: int) -> None:
        super().__init__()
        hidden = [part for _ in range(layers) for part in (nn.LazyLinear(width), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.LazyLinear(num_classes))

    def forward(self, rows_BF: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits: Tensor = self.layers(rows_BF)
        return logits
