"""Matching rows by sample id, never by position.

Shapes: B rows of one message, R rows of another, S students.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdcl_dist.errors import MisalignedIds

__all__ = ["OwnRows", "find_rows", "rows_of"]


class OwnRows:
    """Where the rows of one student's samples are in an answer, prepared before the answer is there.

    Args:
        ids_B: the student's ids, in its own order.
    """

    def __init__(self, ids_B: Tensor) -> None:
        self.ids_B = ids_B
        order_B = ids_B.numpy().argsort()
        self._sorted_B = ids_B.numpy()[order_B]
        self._place_B = np.empty_like(order_B)
        self._place_B[order_B] = np.arange(len(order_B))

    def among(self, ids_R: Tensor) -> Tensor:
        """As `rows_of`; at once if the answer has the student's own samples in ascending order."""
        if np.array_equal(ids_R.numpy(), self._sorted_B):
            return torch.from_numpy(self._place_B)
        return rows_of(self.ids_B, ids_R)


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
    # NumPy's operations take a fraction of torch's on so few numbers.
    wanted_B, found_R = wanted_ids_B.numpy(), ids_R.numpy()
    order_R = found_R.argsort()
    sorted_R = found_R[order_R]
    if (repeats := sorted_R[1:] == sorted_R[:-1]).any():
        raise MisalignedIds(f"sample {int(sorted_R[1:][repeats][0])} occurs twice in one message")
    if not len(sorted_R):
        return torch.zeros_like(wanted_ids_B), torch.zeros_like(wanted_ids_B, dtype=torch.bool)
    index_B = np.minimum(sorted_R.searchsorted(wanted_B), len(sorted_R) - 1)
    return torch.from_numpy(order_R[index_B]), torch.from_numpy(sorted_R[index_B] == wanted_B)
