"""Reading the pickles of CIFAR without running anything that stands in them.

A pickle is a program that may call what it names. Here it can name four things, and gets stand-ins that
only keep what they are given: not even NumPy's own reader, which trusts the state of an array, is reached.
"""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcl_dist.errors import DataError, one_line

__all__ = ["read_pickle"]


def read_pickle(data: bytes, where: str) -> dict[bytes, Any]:
    """The dictionary in a pickle, its NumPy arrays as uint8 arrays that share the pickle's memory.

    Args:
        data: the pickle.
        where: names it in errors.

    Raises:
        DataError: it is damaged, names anything but an array, or is no dictionary of arrays and plain data.
    """
    try:
        file: Any = _File(data)  # gives any buffer where the declared type says bytes
        loaded = _Reader(file, encoding="bytes").load()
        if not isinstance(loaded, dict):
            raise ValueError(f"it holds a {type(loaded).__name__}, not a dictionary")
        return {key: value.array() if isinstance(value, _Array) else value for key, value in loaded.items()}
    except Exception as error:  # damaged pickles raise all sorts of them
        reason = str(error) if isinstance(error, ValueError) else one_line(error)
        raise DataError(f"{where}: cannot be read as a CIFAR pickle: {reason}") from error


class _Array:
    """What a pickle makes of `_reconstruct(ndarray, ...)` and (version, shape, dtype, order, bytes)."""

    __slots__ = ("state",)

    def __init__(self, *_arguments: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> npt.NDArray[np.uint8]:
        """The array, if it is one of bytes in C order."""
        _version, shape, kind, fortran, data = self.state
        if not isinstance(kind, _Kind) or kind.code not in (b"u1", "u1", b"|u1", "|u1") or fortran:
            raise ValueError("an array is not of type uint8 in C order")
        if not isinstance(data, bytes) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("an array is damaged")
        if math.prod(shape) != len(data):
            raise ValueError(f"an array of shape {tuple(shape)} holds {len(data)} bytes")
        return np.frombuffer(data, np.uint8).reshape(shape)


class _Kind:
    """What a pickle makes of `numpy.dtype(code, ...)`."""

    __slots__ = ("code",)

    def __init__(self, code: object, *_arguments: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and fields, which single bytes have not."""


class _Latin1:
    """What a pickle makes of `_codecs.encode(text, "latin1")`: how Python 3 writes bytes in protocol 2."""

    __slots__ = ()

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding != "latin1":
            raise ValueError(f"text in encoding {encoding!r:.40}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        """Without this method a pickle could set the class's attributes."""


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _Latin1,
}


class _File:
    """What `pickle` reads from; unlike `io.BytesIO` it gives large pieces without copying them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.view, self.place = data, memoryview(data), 0

    def peek(self, size: int) -> memoryview:
        return self.view[self.place : self.place + size]

    def read(self, size: int) -> memoryview:
        self.place += size
        return self.view[self.place - size : self.place]

    def readline(self) -> bytes:
        start, self.place = self.place, self.data.index(b"\n", self.place) + 1
        return self.data[start : self.place]


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        """A stand-in for what the pickle names."""
        if (module, name) not in _ALLOWED:
            asked = f"{module}.{name}"
            raise ValueError(f"it asks for {asked!r:.80}, which has no place in such a file; nothing was run")
        return _ALLOWED[module, name]
