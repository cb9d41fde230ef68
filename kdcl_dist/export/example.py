"""An example of what an exported network takes, and the program that it makes of the network.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection, export
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from kdcl_dist.data.layout import Layout
from kdcl_dist.data.samples import Inputs, named

__all__ = ["Example", "names_of"]


def names_of(layout: Layout | None) -> list[str]:
    """The names of a network's inputs where each has one; `layout` is None for images."""
    if layout is None:
        return ["images"]
    return [f"input_{each.name}" if layout.kind == "tuple" else each.name for each in layout.columns]


class Example(NamedTuple):
    """A batch that shows what a network takes.

    Attributes:
        inputs: at least two samples, as in a test.
        layout: of the samples, before they are stacked; None: they are images, all of one size.
    """

    inputs: Inputs
    layout: Layout | None = None

    @property
    def sequences(self) -> Collection[str]:
        """The names of the tensors whose first axis differs from sample to sample."""
        columns = self.layout.columns if self.layout else ()
        return [column.name for column in columns if None in column.shape]

    def program(self, network: nn.Module) -> ExportedProgram:
        """The computation for any number of samples, and for any length where the network allows it.

        Args:
            network: in evaluation mode.
        """
        shapes = ShapesCollection()  # type: ignore[no-untyped-call]
        for name, tensor in named(self.inputs).items():
            axes: dict[int, Any] = {0: Dim("batch")}
            shapes[tensor] = axes | ({1: Dim.AUTO} if name in self.sequences else {})
        by_name = self.inputs if isinstance(self.inputs, dict) else {}
        by_position = () if by_name else tuple(named(self.inputs).values())
        return export(network, by_position, by_name, dynamic_shapes=shapes)

    def lengths(self, program: ExportedProgram) -> dict[str, int]:
        """Of the sequences of which the program takes one length only, that length by name."""
        inputs = program.graph_signature.user_inputs
        shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.name in inputs}
        found = dict(zip(named(self.inputs), (shapes[str(name)] for name in inputs), strict=True))
        return {name: int(found[name][1]) for name in self.sequences if is_concrete_int(found[name][1])}
