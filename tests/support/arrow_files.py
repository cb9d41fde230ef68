"""Arrow files, written without the package's own writer."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from kdcl_dist.data.dataset import Info

INFO = Info(("x", "y"), "raw", 1, (1, 2, 2), (0.5,), (0.5,))


def write_arrow(path: Path, schema: pa.Schema, labels: list[int], images: list[bytes]) -> str:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        arrays = [pa.array(labels, schema.field(0).type), pa.array(images, schema.field(1).type)]
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return str(path)
