"""Samples that are no images, and networks that take them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcl_dist.data.sample_writer import SampleWriter
from kdcl_dist.data.samples import Sample

CLASSES = [f"class {number}" for number in range(4)]
#: Token of the padding, and the number of tokens.
PADDING, TOKENS = 30, 31


def sentence(label: int, random: torch.Generator) -> dict[str, Tensor]:
    """Tokens of which a class has some of its own, and their mask; 2 to 9 of them."""
    length = int(torch.randint(2, 10, (), generator=random))
    tokens = torch.randint(0, 30, (length,), generator=random)
    own = torch.rand(length, generator=random) < 0.4
    tokens[own] = 3 * label
    return {"tokens": tokens, "mask": torch.ones(length, dtype=torch.bool)}


def row(label: int, random: torch.Generator) -> Sample:
    """Five columns of a table, far from mean 0 and deviation 1."""
    return 40 + 7 * (torch.randn(5, generator=random) + torch.eye(4, 5)[label])


def pair(label: int, random: torch.Generator) -> Sample:
    """A row of a table, and a sequence of points."""
    points = torch.randn(int(torch.randint(3, 7, (), generator=random)), 2, generator=random)
    return torch.randn(5, generator=random) + torch.eye(4, 5)[label], points


def write(
    folder: Path, make: Callable[[int, torch.Generator], Sample], train: int = 64, test: int = 24
) -> dict[str, str]:
    """A training and a test set of samples; their paths by the fields of a recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, count in (("train", train), ("test", test)):
        random = torch.Generator().manual_seed(count)
        with SampleWriter(folder / f"{name}.arrow", CLASSES, source="made by a test") as writer:
            for number in range(count):
                writer.add(number % 4, make(number % 4, random))
        found[name] = str(folder / f"{name}.arrow")
    return found


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens that are no padding."""
    weights = mask.unsqueeze(-1).float()
    return (values * weights).sum(dim=1) / weights.sum(dim=1)


class Bag(nn.Module):
    """A classifier of the mean of the tokens' vectors."""

    def __init__(self, num_classes: int, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.vectors, self.dropout = nn.Embedding(TOKENS, width), nn.Dropout(dropout)
        self.hidden, self.head = nn.Linear(width, 16), nn.Linear(16, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(
            torch.relu(self.hidden(self.dropout(masked_mean(self.vectors(tokens), mask))))
        )
        return logits


class Recurrent(nn.Module):
    """A loop over the tokens, which no program unrolls for any length; its logits are in a dictionary."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.vectors, self.cell = nn.Embedding(TOKENS, 6), nn.GRUCell(6, 8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, mask: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Logits."""
        state, states = torch.zeros(tokens.shape[0], 8), []
        for place in range(tokens.shape[1]):
            state = self.cell(self.vectors(tokens[:, place]), state)
            states.append(state)
        return {"logits": self.head(masked_mean(torch.stack(states, dim=1), mask))}


class Table(nn.Module):
    """A perceptron with batch norm."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.layers(x)
        return logits


class Both(nn.Module):
    """A table's row and a sequence of points by position, with a lazy layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.row, self.points = nn.LazyLinear(num_classes), nn.Linear(2, num_classes)

    def forward(self, row: Tensor, points: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.row(row) + self.points(points).mean(dim=1)
        return logits


class Forget:
    """A view that lacks a token, which the sample's random numbers choose."""

    def __call__(self, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sample without it."""
        lost = int(torch.randint(len(sample["tokens"]), ()))
        return {name: torch.cat([each[:lost], each[lost + 1 :]]) for name, each in sample.items()}
