"""Reading the pickles of CIFAR without running code from them.

A pickle is a program that may call any function it names. This reader knows five names and replaces each by a
stand-in that only keeps its arguments. Even NumPy's reader, which trusts the state of an array, is never
called.
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
        where: name of the pickle for errors.

    Raises:
        DataError: the pickle is damaged, names anything but an array, or is no dictionary of arrays and
            plain data.
    """
    try:
        file: Any = _File(data)  # returns buffers, while the declared type says bytes
        loaded = _Reader(file, encoding="bytes").load()
        if not isinstance(loaded, dict):
            raise ValueError(f"it holds a {type(loaded).__name__}, not a dictionary")
        return {key: value.array() if isinstance(value, _Array) else value for key, value in loaded.items()}
    except Exception as error:  # damaged pickles raise many types of exception
        reason = str(error) if isinstance(error, ValueError) else one_line(error)
        raise DataError(f"{where}: cannot be read as a CIFAR pickle: {reason}") from error


class _Array:
    """Stand-in for `_reconstruct(ndarray, ...)`; its state is (version, shape, dtype, order, bytes)."""

    __slots__ = ("state",)

    def __init__(self, *_arguments: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> npt.NDArray[np.uint8]:
        """The array; raises `ValueError` unless it is of uint8 in C order."""
        _version, shape, kind, fortran, data = self.state
        if not isinstance(kind, _Kind) or kind.code not in (b"u1", "u1", b"|u1", "|u1") or fortran:
            raise ValueError("an array is not of type uint8 in C order")
        if not isinstance(data, bytes) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("an array is damaged")
        if math.prod(shape) != len(data):
            raise ValueError(f"an array of shape {tuple(shape)} holds {len(data)} bytes")
        return np.frombuffer(data, np.uint8).reshape(shape)


class _Kind:
    """Stand-in for `numpy.dtype(code, ...)`."""

    __slots__ = ("code",)

    def __init__(self, code: object, *_arguments: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and fields: single bytes have none."""


class _Latin1:
    """Stand-in for `_codecs.encode(text, "latin1")`, by which Python 3 writes bytes in protocol 2."""

    __slots__ = ()

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding != "latin1":
            raise ValueError(f"text in encoding {encoding!r:.40}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        """Ignore a state, which otherwise could set the class's attributes."""


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _Latin1,
}


class _File:
    """The file that `pickle` reads; unlike `io.BytesIO` it returns pieces without copying them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.view, self.position = data, memoryview(data), 0

    def peek(self, size: int) -> memoryview:
        """The next bytes, at most `size`, without advancing."""
        return self.view[self.position : self.position + size]

    def read(self, size: int) -> memoryview:
        """The next bytes, at most `size`."""
        self.position += size
        return self.view[self.position - size : self.position]

    def readline(self) -> bytes:
        """The bytes up to the next newline, inclusive; raises `ValueError` if there is none."""
        start, self.position = self.position, self.data.index(b"\n", self.position) + 1
        return self.data[start : self.position]


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        """The stand-in for a name in the pickle."""
        if (module, name) not in _ALLOWED:
            asked = f"{module}.{name}"
            raise ValueError(
                f"it asks for {asked!r:.80}, which does not belong in such a file; nothing was run"
            )
        return _ALLOWED[module, name]
