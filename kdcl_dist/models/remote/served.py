"""The description of a served network: what it takes, what it gives, and its limits.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from kdcl_dist.config.base import Strict
from kdcl_dist.data.layout import Layout

__all__ = ["Served"]


class Served(Strict):
    """A served network, as it tells of itself in JSON.

    Attributes:
        format: of the messages.
        name: for people.
        sha256: of the file of weights.
        inputs: the layout of a sample; of a shape, null is an axis of any length.
        classes: the names of the classes, in the order of the logits.
        max_rows, max_bytes: of one request.
    """

    format: Literal[1] = 1
    name: str
    sha256: str
    inputs: Layout
    classes: Annotated[list[str], Field(min_length=1)]
    max_rows: PositiveInt
    max_bytes: PositiveInt

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """See that a batch is one that the network takes.

        Raises:
            ValueError: it is not; one line of text.
        """
        if sorted(tensors) != sorted(column.name for column in self.inputs.columns):
            raise ValueError(
                f"tensors {', '.join(map(repr, tensors))}, where the network takes a {self.inputs}"
            )
        rows = {len(tensor) if tensor.ndim else 0 for tensor in tensors.values()}
        if len(rows) > 1 or not 1 <= max(rows) <= self.max_rows:
            raise ValueError(
                f"{' and '.join(map(str, sorted(rows)))} samples, where all tensors of a request have 1 to "
                f"{self.max_rows}"
            )
        for column in self.inputs.columns:
            tensor = tensors[column.name]
            sides = zip(column.shape, tensor.shape[1:], strict=False)
            fits = tensor.ndim == len(column.shape) + 1 and all(a in (None, b) for a, b in sides)
            found = str(tensor.dtype).removeprefix("torch.")
            if not fits or found != column.dtype:
                raise ValueError(
                    f"{column.name!r} is {found} {tuple(tensor.shape[1:])}, where a sample has {column}"
                )
