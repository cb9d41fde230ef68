"""Mixup and cutmix: a step's samples are mixed in pairs, by pure functions of the recipe and the step.

Students, their replicas and the coordinator draw the same for themselves, so no message carries a draw.

Shapes: B samples of a step or of a share of it, N images that it needs, C classes or channels, H W image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.sampling import Ids
from kdcl_dist.distillation.labels import two_hot
from kdcl_dist.utils.seeding import Purpose, draws, permutation

__all__ = ["Box", "Mix", "mix_of_round"]


class Box(NamedTuple):
    """A box of an image, in fractions of its height and width, so that it fits images of any size."""

    top: float
    bottom: float
    left: float
    right: float

    @property
    def area(self) -> float:
        """Share of the image."""
        return (self.bottom - self.top) * (self.right - self.left)

    def of(self, images_NCHW: Tensor) -> Tensor:
        """The pixels in the box, a view; edges are rounded to pixels."""
        height, width = images_NCHW.shape[-2:]
        rows = slice(round(self.top * height), round(self.bottom * height))
        return images_NCHW[..., rows, round(self.left * width) : round(self.right * width)]


class Mix(NamedTuple):
    """How samples of one step are mixed.

    Attributes:
        partners: ids_B of the samples that are mixed in; the samples themselves at a step without mixing.
        share: lambda, the share of the sample itself in its label, and with mixup in its image.
        box: of cutmix, in which the image is the partner's; None for mixup.
    """

    partners: Ids
    share: float
    box: Box | None

    def needed(self, ids_B: Ids) -> Ids:
        """The samples whose images are needed to mix those of `ids_B`: they come first, each once."""
        return np.concatenate([ids_B, np.setdiff1d(self.partners, ids_B)])

    def images(self, ids_N: Ids, images_NCHW: Tensor) -> Tensor:
        """The mixed images, in place of the first ones.

        Mixup gives lambda x + (1 - lambda) x' (Zhang et al., ICLR 2018, eq. 1), cutmix x' in the box and x
        around it (Yun et al., ICCV 2019, eq. 1).

        Args:
            ids_N: of `needed`.
            images_NCHW: their images, normalised, float32.
        """
        images_BCHW = images_NCHW[: len(self.partners)]
        if self.share == 1:
            return images_BCHW
        order_N = np.argsort(ids_N)
        row_B = torch.from_numpy(order_N[np.searchsorted(ids_N, self.partners, sorter=order_N)])
        if self.box is None:
            mixed_in_BCHW = images_NCHW[row_B].mul_(1 - self.share)
            return images_BCHW.mul_(self.share).add_(mixed_in_BCHW)
        self.box.of(images_BCHW).copy_(self.box.of(images_NCHW)[row_B])
        return images_BCHW

    def labels(self, labels_B: Tensor, partners_B: Tensor, classes: int) -> Tensor:
        """The class probabilities (B, C) of the samples, by their classes and those of their partners."""
        return two_hot(labels_B, partners_B, self.share, classes)


def mix_of_round(recipe: Recipe, turn: int, ids_B: Ids) -> Mix | None:
    """How a step, or a part of it with `accumulate`, mixes its samples; None if the recipe never mixes.

    Args:
        recipe: the run.
        turn: number of the part from the start of the run; without `accumulate` the global step.
        ids_B: all its samples, in any order.
    """
    if not recipe.data.mixes:
        return None
    share, box = _ratio(recipe, turn)
    return Mix(ids_B if share == 1 else _partners(recipe.seed, turn, ids_B), share, box)


def _ratio(recipe: Recipe, turn: int) -> tuple[float, Box | None]:
    """Lambda and the box of a step."""
    data, random = recipe.data, draws(recipe.seed, Purpose.MIXING, turn)
    drawn, start = random.random_sample(), 0.0
    for kind in (data.mixup, data.cutmix):
        if kind is None:
            continue
        if start <= drawn < start + kind.probability:
            share = random.beta(kind.alpha, kind.alpha)
            return (share, None) if kind is data.mixup else _cut(share, *random.random_sample(2).tolist())
        start += kind.probability
    return 1.0, None


def _cut(share: float, y: float, x: float) -> tuple[float, Box]:
    """A box of the area 1 - share around a point of the image, cut off at its edges, and what it leaves."""
    half = math.sqrt(1 - share) / 2
    box = Box(max(0.0, y - half), min(1.0, y + half), max(0.0, x - half), min(1.0, x + half))
    return 1 - box.area, box


def _partners(seed: int, turn: int, ids_B: Ids) -> Ids:
    """The next of each sample in a random cycle of all: each has another one, and is so once."""
    sorted_B, cycle_B = np.sort(ids_B), permutation(len(ids_B), seed, Purpose.PARTNER, turn)
    next_B = np.empty_like(cycle_B)
    next_B[cycle_B] = np.roll(cycle_B, -1)
    return sorted_B[next_B[np.searchsorted(sorted_B, ids_B)]]
