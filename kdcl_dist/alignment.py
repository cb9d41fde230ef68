"""Matching rows by sample id, never by position.

Shapes: B rows of one message, R rows of another, S students.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcl_dist.errors import MisalignedIds

__all__ = ["rows_of"]


def rows_of(wanted_ids_B: Tensor, ids_R: Tensor) -> Tensor:
    """For each wanted id, the row in which `ids_R` has it: int64 (B,).

    Raises:
        MisalignedIds: an id is wanted that `ids_R` lacks, or `ids_R` has an id twice.
    """
    sorted_ids, order = torch.sort(ids_R)
    if bool((sorted_ids[1:] == sorted_ids[:-1]).any()):
        twice = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
        raise MisalignedIds(f"sample {int(twice[0])} occurs twice in one message")
    place = torch.searchsorted(sorted_ids, wanted_ids_B).clamp_(max=max(len(ids_R) - 1, 0))
    found = (
        sorted_ids[place] == wanted_ids_B if len(ids_R) else torch.zeros_like(wanted_ids_B, dtype=torch.bool)
    )
    if not bool(found.all()):
        raise MisalignedIds(
            f"{int((~found).sum())} of {len(wanted_ids_B)} samples are missing, the first is "
            f"{int(wanted_ids_B[~found][0])}"
        )
    return order[place]
