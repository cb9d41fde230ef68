"""An open data set, with the facts that the other sets of its run follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdcl_dist.data.dataset import Dataset
from kdcl_dist.data.sources.table_columns import Columns

__all__ = ["Opened", "Tell"]

#: Takes a line about what was found in a data set.
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Opened:
    """A data set, and the use of a table's columns if it was made of one."""

    dataset: Dataset
    columns: Columns | None = None
