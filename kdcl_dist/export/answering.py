"""Answers to requests for the logits of an export, whatever server takes them. The protocol: docs/serving.md.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import threading

from torch import Tensor

from kdcl_dist.data.layout import Column, Layout
from kdcl_dist.data.samples import ALONE, Inputs
from kdcl_dist.export.prediction import Export
from kdcl_dist.models.remote.served import Served
from kdcl_dist.models.remote.wire import decode, encode

__all__ = ["MAX_MB", "MAX_ROWS", "Answering"]

#: The largest request unless told otherwise: samples, and MB.
MAX_ROWS, MAX_MB = 4096, 256


class Answering:
    """Answers for an export, one request at a time.

    Args:
        export: the network.
        max_rows: samples of a request.
        max_bytes: of a request.

    Attributes:
        served: the description of the network.
    """

    def __init__(self, export: Export, max_rows: int = MAX_ROWS, max_bytes: int = MAX_MB * 10**6) -> None:
        self.export, self.busy = export, threading.Lock()
        self.served = _description(export, max_rows, max_bytes)

    def description(self) -> bytes:
        """The answer to `GET /`: JSON."""
        return self.served.model_dump_json().encode()

    def answer(self, body: bytes | bytearray) -> bytes:
        """The answer to `POST /logits`.

        Raises:
            ValueError: the body has no batch that the network takes, which is status 400; one line of text.
            KdclError: the network fails, which is status 500.
        """
        if len(body) > self.served.max_bytes:
            raise ValueError(f"a request has at most {self.served.max_bytes} bytes")
        body = body if isinstance(body, bytearray) else bytearray(body)
        return encode({"logits": self.logits(decode(body))})

    def logits(self, tensors: dict[str, Tensor]) -> Tensor:
        """The logits (B, C) of a batch; errors as of `answer`."""
        self.served.check(tensors)
        for name, length in (self.export.description.lengths or {}).items():
            if tensors[name].shape[1] != length:
                raise ValueError(
                    f"{name!r} is of length {tensors[name].shape[1]}, where this file takes {length}"
                )
        kind = self.served.inputs.kind
        names = [column.name for column in self.served.inputs.columns]
        inputs: Inputs = (
            tensors[ALONE]
            if kind == "tensor"
            else {name: tensors[name] for name in names}
            if kind == "dict"
            else tuple(tensors[name] for name in names)
        )
        with self.busy:
            return self.export.logits(inputs).float()


def _description(export: Export, max_rows: int, max_bytes: int) -> Served:
    description = export.description
    images = Layout("tensor", (Column(ALONE, "float32", description.input_shape or ()),))
    return Served(
        name=f"{description.student} of {description.run}",
        sha256=description.sha256,
        inputs=description.inputs or images,
        classes=description.classes,
        max_rows=max_rows,
        max_bytes=max_bytes,
    )
