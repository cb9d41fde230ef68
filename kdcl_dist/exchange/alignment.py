"""Matching rows by sample id, never by position.

Shapes: B rows of one message, R rows of another, S students.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcl_dist.errors import MisalignedIds

__all__ = ["find_rows", "rows_of"]


def rows_of(wanted_ids_B: Tensor, ids_R: Tensor) -> Tensor:
    """The row of `ids_R` that holds each wanted id: int64 (B,).

    Raises:
        MisalignedIds: `ids_R` lacks a wanted id, or holds an id twice.
    """
    row_B, found_B = find_rows(wanted_ids_B, ids_R)
    if not bool(found_B.all()):
        raise MisalignedIds(
            f"{int((~found_B).sum())} of {len(wanted_ids_B)} samples are missing, the first is "
            f"{int(wanted_ids_B[~found_B][0])}"
        )
    return row_B


def find_rows(wanted_ids_B: Tensor, ids_R: Tensor) -> tuple[Tensor, Tensor]:
    """The row of `ids_R` that holds each wanted id, int64 (B,), and whether there is one, bool (B,).

    The row of a missing id has no meaning.

    Raises:
        MisalignedIds: `ids_R` holds an id twice.
    """
    sorted_ids, order = torch.sort(ids_R)
    if bool((sorted_ids[1:] == sorted_ids[:-1]).any()):
        twice = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
        raise MisalignedIds(f"sample {int(twice[0])} occurs twice in one message")
    if not len(ids_R):
        return torch.zeros_like(wanted_ids_B), torch.zeros_like(wanted_ids_B, dtype=torch.bool)
    index_B = torch.searchsorted(sorted_ids, wanted_ids_B).clamp_(max=len(ids_R) - 1)
    return order[index_B], sorted_ids[index_B] == wanted_ids_B
