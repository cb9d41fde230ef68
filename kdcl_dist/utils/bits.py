"""Tensors as their bits: equal ones, and a sum that a flipped bit changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["bits_of", "differing", "sum_of_bits"]

#: The integers with as many bytes as a number.
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(tensor: Tensor) -> Tensor:
    """The same memory as integers of the numbers' size, of the same shape; complex ones become pairs."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.detach().view(INTEGERS[real.element_size()])


def sum_of_bits(tensor: Tensor) -> Tensor:
    """The sum of all numbers' bits modulo 2**64, int64 (): any single flipped bit changes it."""
    return bits_of(tensor).sum(dtype=torch.int64)


def differing(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], tolerance: float | None = None
) -> list[str]:
    """The names of the tensors that only one of both has, or that differ.

    Args:
        first, second: tensors by name.
        tolerance: greatest norm of the difference of floating-point tensors, as a share of the norm of the
            first. None: no bit differs.
    """
    return [
        name
        for name in dict.fromkeys((*first, *second))
        if name not in first or name not in second or not _are_same(first[name], second[name], tolerance)
    ]


def _are_same(first: Tensor, second: Tensor, tolerance: float | None) -> bool:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    if torch.equal(bits_of(first), bits_of(second)):
        return True
    if tolerance is None or not first.is_floating_point():
        return False
    distance = (first.detach() - second.detach()).double().norm()
    return bool(distance <= tolerance * first.detach().double().norm())
