"""The layout of samples that are no images: names, types and shapes of their tensors.

A shape is that of one sample. Its first axis is None where it differs from sample to sample, as in sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict
from torch import Tensor

from kdcl_dist.data.samples import named

__all__ = ["Column", "Kind", "Layout", "Shape"]

Kind = Literal["tensor", "tuple", "dict"]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Column:
    """One tensor of every sample.

    Attributes:
        name: of `kdcl_dist.data.samples.named`.
        dtype: as PyTorch names it: "float32", "int64", "bool".
        shape: of one sample.
    """

    name: str
    dtype: str
    shape: Shape

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def features(self) -> int:
        """Numbers in the last axis; 1 where there is none, or where it differs from sample to sample."""
        return (self.shape[-1] if self.shape else None) or 1

    @property
    def is_floating(self) -> bool:
        """Whether the numbers have fractions."""
        return "float" in self.dtype

    def joined(self, other: Column) -> Column:
        """The column of both; `ValueError` where the same column cannot hold both."""
        first = self.shape[:1] if self.shape[:1] == other.shape[:1] else (None,)
        mine, theirs = (
            Column(each.name, each.dtype, (*first, *each.shape[1:]) if each.shape else ())
            for each in (self, other)
        )
        if mine != theirs:
            raise ValueError(f"{self} and {other}")
        return mine

    def __str__(self) -> str:
        """`tokens: int64 (any, 3)`."""
        sides = ", ".join("any" if side is None else str(side) for side in self.shape)
        return f"{self.name}: {self.dtype} ({sides})"


@dataclass(frozen=True)
class Layout:
    """The layout of all samples of a data set.

    Attributes:
        kind: of a sample.
        columns: its tensors, in their order.
    """

    kind: Kind
    columns: tuple[Column, ...]

    @classmethod
    def of(cls, sample: Any) -> Layout:
        """The layout of one sample; `ValueError`, in one line, if it is none."""
        if not isinstance(sample, (Tensor, tuple, dict)):
            raise ValueError(f"a {type(sample).__name__}, not a tensor, a tuple or a dict of tensors")
        tensors = named(sample)
        if not tensors:
            raise ValueError(f"an empty {type(sample).__name__}")
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ValueError(f"a {type(tensor).__name__} as {name!r}, not a torch.Tensor with a name")
        kind: Kind = (
            "tensor" if isinstance(sample, Tensor) else "dict" if isinstance(sample, dict) else "tuple"
        )
        return cls(kind, tuple(_column(name, tensor) for name, tensor in tensors.items()))

    def joined(self, other: Layout) -> Layout:
        """The layout of samples of both.

        Raises:
            ValueError: their kinds, names or types differ, or shapes beyond the first axis; one line of text.
        """
        names = [column.name for column in self.columns]
        if self.kind != other.kind or names != [column.name for column in other.columns]:
            raise ValueError(f"{self} and {other}")
        pairs = zip(self.columns, other.columns, strict=True)
        return Layout(self.kind, tuple(mine.joined(theirs) for mine, theirs in pairs))

    def __str__(self) -> str:
        """`dict of tokens: int64 (any), mask: bool (any)`."""
        return f"{self.kind} of {', '.join(map(str, self.columns))}"


def _column(name: str, tensor: Tensor) -> Column:
    return Column(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
