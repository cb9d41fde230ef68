"""The columns of stored logits: how the logits of some samples are kept, and made a record batch of a file.

Shapes: B rows, C classes, L stored logits of a row: C, or `top_k`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

__all__ = ["batch_of", "columns_of"]

Array = npt.NDArray[Any]


def columns_of(logits_BC: Tensor, top_k: int | None, dtype: str) -> dict[str, Array]:
    """The columns of some rows: `logits` (B, L), and with `top_k` their `classes` (B, L) and `rest` (B,).

    Args:
        logits_BC: float32, on the CPU.
        top_k: L, at most C. None: the logits of all classes are kept.
        dtype: of `logits` and `rest`, "float32" or "float16".
    """
    kind = getattr(torch, dtype)
    if top_k is None:
        return {"logits": logits_BC.to(kind).numpy()}
    logits_BL, classes_BL = logits_BC.topk(top_k, dim=1)
    rest_B = logits_BL[:, -1]
    if (others := logits_BC.shape[1] - top_k) > 0:
        rest_B = logits_BC.scatter(1, classes_BL, -math.inf).logsumexp(dim=1) - math.log(others)
    return {
        "logits": logits_BL.to(kind).numpy(),
        "classes": classes_BL.int().numpy(),
        "rest": rest_B.to(kind).numpy(),
    }


def batch_of(
    schema: pa.Schema, ids_B: npt.NDArray[np.int64], view: int, columns: Mapping[str, Array]
) -> pa.RecordBatch:
    """Some rows of one view as a record batch.

    Args:
        schema: of the file.
        ids_B: of the samples.
        view: its number.
        columns: as of `columns_of`.
    """
    arrays = [pa.array(ids_B, pa.int64()), pa.array(np.full(len(ids_B), view, np.int32))]
    for name, values in columns.items():
        numbers = pa.array(values.reshape(-1))
        kind = schema.field(name).type
        arrays.append(numbers if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(numbers, type=kind))
    return pa.record_batch(arrays, schema=schema)
