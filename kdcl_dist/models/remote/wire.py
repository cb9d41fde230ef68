"""Tensors as bytes, laid out as a file of safetensors; nothing in them is code.

Eight bytes give the length of a header, little-endian. The header is JSON: by the name of each tensor its
`dtype`, `shape` and `data_offsets`, from its first byte behind the header to the byte after its last. The
tensors follow one another without gaps, little-endian, the last axis fastest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["DTYPES", "decode", "encode"]

#: The types by their names in a header.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: Bytes of the longest header.
MAX_HEADER = 1 << 20


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of some tensors on the CPU, by their names."""
    header: dict[str, Any] = {}
    parts, end = [], 0
    for name, tensor in tensors.items():
        parts.append(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def decode(body: bytearray) -> dict[str, Tensor]:
    """The tensors of some bytes, with memory of their own.

    Raises:
        ValueError: the bytes are none of `encode`; one line of text.
    """
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > min(MAX_HEADER, len(body) - 8):
        raise ValueError(f"a header of {size} bytes in {len(body)}: this is no file of safetensors")
    try:
        header = json.loads(bytes(body[8 : 8 + size]))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError("the header is no JSON object: this is no file of safetensors") from error
    data, end, tensors = memoryview(body)[8 + size :], 0, {}
    for name, entry in sorted(entries.items(), key=_start):
        dtype, shape, (start, stop) = _checked(name, entry)
        if start != end or stop > len(data):
            raise ValueError(f"the bytes of {name!r} overlap others, leave a gap, or are missing")
        end = stop
        tensors[name] = _tensor(data[start:stop], dtype, shape)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes belong to no tensor")
    return {name: tensors[name] for name in entries}


def _tensor(data: memoryview, dtype: torch.dtype, shape: list[int]) -> Tensor:
    flat = (
        torch.frombuffer(data, dtype=torch.uint8).clone() if len(data) else torch.empty(0, dtype=torch.uint8)
    )
    try:
        return (flat != 0 if dtype is torch.bool else flat.view(dtype)).reshape(shape)
    except (RuntimeError, OverflowError, TypeError) as error:  # an empty tensor of impossible sides
        raise ValueError(f"a tensor cannot have the shape {shape}") from error


def _start(item: tuple[str, Any]) -> Any:
    """Where a tensor starts; 0 for an entry that is refused later."""
    try:
        return float(item[1]["data_offsets"][0])
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        return 0.0


def _checked(name: str, entry: Any) -> tuple[torch.dtype, list[int], tuple[int, int]]:
    """Type, shape and offsets of an entry of the header; `ValueError` if they do not fit together."""
    try:
        dtype, shape, (start, stop) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        fits = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
        fits = fits and math.prod(shape) * dtype.itemsize == stop - start
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{name!r} needs dtype ({', '.join(DTYPES)}), shape and data_offsets") from error
    if not fits:
        raise ValueError(
            f"{name!r}: {entry['dtype']} of shape {shape} takes other bytes than {start} to {stop}"
        )
    return dtype, shape, (start, stop)
