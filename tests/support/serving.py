"""Servers of networks that the tests make."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcl_dist.export.prediction import Export
from kdcl_dist.export.preprocessing import Description
from kdcl_dist.export.server import LogitsServer


def export_of(network: nn.Module, classes: list[str], **fields: Any) -> Export:
    """An export that is in no folder.

    Args:
        network: what it computes.
        classes: their names.
        fields: of the description: `input_shape`, or `inputs` of samples that are no images.
    """
    if "input_shape" in fields:
        channels = fields["input_shape"][0]
        fields |= {"layout": "NCHW", "colours": "own", "mean": [0.0] * channels, "std": [1.0] * channels}
    description = Description(
        run="r",
        student="a",
        model="mlp",
        step=3,
        kind="state_dict",
        weights="model.pt",
        sha256="0" * 64,
        test_view=[],
        classes=classes,
        seed=0,
        **fields,
    )
    return Export(Path("made"), description, network.eval(), torch.device("cpu"))


@contextmanager
def serving(export: Export, port: int = 0, **more: Any) -> Iterator[LogitsServer]:
    """A server in a thread of this process."""
    limits = {"max_rows": 100, "max_bytes": 100_000} | more
    with LogitsServer(export, "127.0.0.1", port, **limits) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
