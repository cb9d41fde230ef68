"""Checking an `.onnx` file before ONNX Runtime reads it: all of its data must be in it.

A tensor may lie in another file, whose path the file gives: one that belongs to someone else, or that no
digest protects. `kdcl export` writes no such file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdcl_dist.errors import ExportError
from kdcl_dist.utils.files import open_regular

__all__ = ["check_model"]


def check_model(path: Path) -> None:
    """Check that no tensor of a file lies in another file.

    Raises:
        ExportError: one does.
        ValueError, DecodeError: the file is no regular one, or no ONNX model.
    """
    import onnx

    with open_regular(path) as file:
        model = onnx.load_model_from_string(file.read())
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ExportError(
                f"{path}: the tensor {tensor.name!r} lies in another file; read it with onnxruntime if you "
                "trust it, or export it again"
            )


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors in a message of Protocol Buffers: of graphs, of their nodes, and of graphs in these."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if isinstance(value, Sequence) else [value]:
                if field.message_type.name == "TensorProto":
                    yield each
                else:
                    yield from _tensors(each)
