"""Three networks of different kinds that tell the language of a word.

Each takes the ids of letters, int32 (B, L) padded with 0 at the end, and gives logits (B, num_classes).

Shapes: B words, L letters of the longest, G n-grams.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Ids of letters, with the padding.
LETTERS = 27
#: Longest word.
LONGEST = 15


class Recurrent(nn.Module):
    """An LSTM (Hochreiter & Schmidhuber, 1997), read at the last letter."""

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, 32)
        self.lstm = nn.LSTM(32, width, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, letters_BL: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        states_BLH, _ = self.lstm(self.letters(letters_BL))
        last_B = (letters_BL != 0).sum(dim=1) - 1
        logits: Tensor = self.head(states_BLH[torch.arange(len(last_B)), last_B])
        return logits


class Attention(nn.Module):
    """A small transformer encoder (Vaswani et al., 2017), read as the mean over the letters."""

    def __init__(self, num_classes: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, width), nn.Embedding(LONGEST, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, letters_BL: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        there_BL1 = (letters_BL != 0).unsqueeze(-1)
        inputs_BLH = self.letters(letters_BL) + self.places.weight[: letters_BL.shape[1]]
        states_BLH = self.encoder(inputs_BLH, src_key_padding_mask=~there_BL1.squeeze(-1))
        logits: Tensor = self.head((states_BLH * there_BL1).sum(dim=1) / there_BL1.sum(dim=1))
        return logits


class NGrams(nn.Module):
    """A perceptron on the mean vector of a word's n-grams of 1 to 3 letters, hashed into a table of vectors.

    Hashing: Weinberger et al., *Feature hashing for large scale multitask learning*, 2009. The padding ends
    a word: n-grams that only begin in the word count, so that its last letters have n-grams of their own.
    """

    def __init__(self, num_classes: int, width: int = 64, buckets: int = 4096) -> None:
        super().__init__()
        self.buckets = buckets
        self.vectors = nn.Embedding(3 * buckets, width)
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes)
        )

    def forward(self, letters_BL: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        padded = nn.functional.pad(letters_BL.long(), (0, 2))
        hash_BL, places = torch.zeros_like(letters_BL, dtype=torch.int64), []
        for n in range(3):
            hash_BL = hash_BL * 1009 + padded[:, n : n + letters_BL.shape[1]]
            places.append(hash_BL % self.buckets + n * self.buckets)
        there_BG1 = (letters_BL != 0).repeat(1, 3).unsqueeze(-1)
        vectors_BGH = self.vectors(torch.cat(places, dim=1)) * there_BG1
        logits: Tensor = self.layers(vectors_BGH.sum(dim=1) / there_BG1.sum(dim=1))
        return logits
