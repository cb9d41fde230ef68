"""Samples: what a network takes of one sample, one tensor or several, and batches of them.

Shapes: B batch, L the longest first axis of a batch, or a stated one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ALONE",
    "Collate",
    "Inputs",
    "Sample",
    "described",
    "forward",
    "like",
    "map_tensors",
    "named",
    "repeated",
    "rows",
]

#: One sample. Tensors of a tuple are positional arguments of a network, those of a dict keyword arguments.
Sample = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
#: A batch of samples: each tensor has a first axis B.
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

#: The name of the one tensor of a sample that is no tuple and no dict; those of a tuple are "0", "1", ...
ALONE = "input"


def named(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors of a sample or a batch by their names."""
    if isinstance(inputs, Tensor):
        return {ALONE: inputs}
    if isinstance(inputs, dict):
        return inputs
    return {str(position): tensor for position, tensor in enumerate(inputs)}


def like(inputs: Inputs, tensors_by_name: Mapping[str, Tensor]) -> Inputs:
    """Other tensors, by the names of `named`, in the form of a sample or a batch."""
    if isinstance(inputs, Tensor):
        return tensors_by_name[ALONE]
    if isinstance(inputs, dict):
        return {name: tensors_by_name[name] for name in inputs}
    return tuple(tensors_by_name[name] for name in named(inputs))


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """What a function makes of each tensor, in the same form."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(map(function, inputs))


def rows(inputs: Inputs) -> int:
    """Number of samples B of a batch."""
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(named(inputs).values())))


def repeated(inputs: Inputs, size: int) -> Inputs:
    """A batch of another size, of the same samples over and over."""
    return map_tensors(inputs, lambda tensor: tensor[torch.arange(size) % len(tensor)])


def forward(network: Callable[..., Any], inputs: Inputs) -> Any:
    """What a network gives for a batch: its tensors are the arguments of the call."""
    if isinstance(inputs, Tensor):
        return network(inputs)
    if isinstance(inputs, dict):
        return network(**inputs)
    return network(*inputs)


def described(inputs: Inputs) -> str:
    """A batch by its shapes, in an error message: "images of shape (2, 3, 8, 8)"."""
    if isinstance(inputs, Tensor):
        return f"{'images' if inputs.ndim == 4 else 'inputs'} of shape {tuple(inputs.shape)}"
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named(inputs).items())
    return f"inputs of shapes {shapes}"


@dataclass(frozen=True)
class Collate:
    """Stacks samples. Where the first axis differs, as in sequences, shorter ones are padded at their end.

    Attributes:
        values: number that pads a tensor, by the names of `named`; 0 for those without.
        length: L of the tensors in `values`: shorter ones are padded and longer ones cut at their end. None:
            the longest of the batch.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    length: int | None = None

    def __call__(self, samples: Sequence[Sample]) -> Inputs:
        """The batch of at least one sample; all have the same names.

        Raises:
            ValueError: tensors differ in another axis than the first, or in their type; `values` names none
                of them, or a number that is none of their type; one line of text.
        """
        columns = [named(sample) for sample in samples]
        if unknown := self.values.keys() - columns[0].keys():
            names = ", ".join(map(repr, sorted(unknown)))
            raise ValueError(f"values names {names}, have {', '.join(columns[0])}")
        return like(samples[0], {name: self._stacked(name, columns) for name in columns[0]})

    def _stacked(self, name: str, columns: Sequence[Mapping[str, Tensor]]) -> Tensor:
        tensors = [column[name] for column in columns]
        first, length = tensors[0], self.length if name in self.values else None
        for tensor in tensors:
            if tensor.dtype != first.dtype or tensor.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"{name} is {_described(first)} in one sample and {_described(tensor)} in another: types "
                    "must be the same, and only first axes are padded"
                )
        if length is None and all(tensor.shape == first.shape for tensor in tensors):
            return torch.stack(tensors)
        return _padded(tensors, length, self.values.get(name, 0))


def _padded(tensors: Sequence[Tensor], length: int | None, value: float) -> Tensor:
    first = tensors[0]
    if not first.ndim:
        raise ValueError("a tensor without axes cannot be padded")
    if not first.is_floating_point() and value != int(value):
        raise ValueError(f"{value} cannot pad whole numbers")
    longest = max(map(len, tensors)) if length is None else length
    out = first.new_full((len(tensors), longest, *first.shape[1:]), value)
    for row, tensor in zip(out, tensors, strict=True):
        row[: len(tensor)] = tensor[:longest]
    return out


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
