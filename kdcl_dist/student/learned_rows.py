"""The rows of a step from which a student learns, where it answers on samples that are not its own.

Shapes: N samples, B rows of a batch, K of them that are the student's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcl_dist.data.sampling import Ids

__all__ = ["LearnedRows"]


class LearnedRows:
    """The own rows of a student's batches.

    Args:
        own_ids: the samples from which the student learns.
        train_ids: the training samples of the run.
    """

    def __init__(self, own_ids: Ids, train_ids: Ids) -> None:
        self.share = len(own_ids) / len(train_ids)
        self.is_own_N = torch.zeros(int(train_ids.max()) + 1, dtype=torch.bool)
        self.is_own_N[torch.from_numpy(own_ids)] = True

    def rows(self, ids_B: Tensor) -> tuple[Tensor, float]:
        """The own rows of a batch, ascending, int64 (K,), and the factor of a mean over them in its loss.

        The loss is the sum over the own rows, divided by the number of them in a batch on average. So a
        sample has the same weight in every batch, as large as in a batch of its student's samples alone. The
        factor is 0 where there are none.
        """
        rows_K = self.is_own_N[ids_B].nonzero()[:, 0]
        return rows_K, len(rows_K) / (self.share * len(ids_B))
