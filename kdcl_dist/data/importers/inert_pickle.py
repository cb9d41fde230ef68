"""Reading the pickles of CIFAR without running code from them.

A pickle is a program that may call any function it names. This reader knows a few names and replaces each by
a stand-in that only keeps its arguments. Even NumPy's reader, which trusts the state of an array, is never
called.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcl_dist.errors import DataError, one_line

__all__ = ["read_pickle"]

#: The end of a pickle, and the instructions that keep a value under a number: PUT, BINPUT and LONG_BINPUT.
STOP, PUTS = ord("."), frozenset(b"pqr")
#: Lines of arguments in text, and bytes of the length before others, by the kind that `pickletools` gives.
TWO_LINES = -6
LINES = {pickletools.UP_TO_NEWLINE: 1, TWO_LINES: 2}
LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
#: Bytes of each instruction's argument, or such a kind.
SIZES = {ord(each.code): each.arg.n if each.arg else 0 for each in pickletools.opcodes}
SIZES |= dict.fromkeys(b"ci", TWO_LINES)  # GLOBAL and INST: a module and a name


def read_pickle(data: bytes, where: str) -> dict[bytes, Any]:
    """The dictionary in a pickle: its keys as bytes, its NumPy arrays of whole numbers as arrays.

    Args:
        data: the pickle.
        where: name of the pickle for errors.

    Raises:
        DataError: the pickle is damaged, names anything but an array, or is no dictionary of arrays and
            plain data, or has a key twice, as text and as bytes.
    """
    try:
        _check_memo(data)
        file: Any = _File(data)  # returns buffers, while the declared type says bytes
        loaded = _Reader(file, encoding="bytes").load()
        if not isinstance(loaded, dict):
            raise ValueError(f"it holds a {type(loaded).__name__}, not a dictionary")
        content = {_plain_key(key): _plain(value) for key, value in loaded.items()}
        if len(content) != len(loaded):
            raise ValueError("it has a key twice, as text and as bytes")
        return content
    except Exception as error:  # damaged pickles raise many types of exception
        reason = str(error) if isinstance(error, ValueError) else one_line(error)
        raise DataError(f"{where}: cannot be read as a CIFAR pickle: {reason}") from error


def _check_memo(data: bytes) -> None:
    """Refuse a pickle that keeps something under a far number: the memory is taken for all numbers below.

    This looks at each instruction, and skips what it holds. Where it cannot go on, pickle's reader cannot
    either, which then tells of the damage.

    Raises:
        ValueError: a number is above that of the instructions before it, as no pickle of Python's has.
    """
    position = count = 0
    while position < len(data) and (code := data[position]) != STOP:
        size = _argument_bytes(data, position + 1, SIZES.get(code))
        if size is None:
            return
        if code in PUTS and (number := _number(data[position + 1 : position + 1 + size], code)) > count:
            raise ValueError(
                f"it stores a value as number {number:,} after {count:,} instructions, which takes memory "
                "for all numbers below"
            )
        position, count = position + 1 + size, count + 1


def _argument_bytes(data: bytes, start: int, kind: int | None) -> int | None:
    """Bytes of an argument: of a fixed size, in lines or after a length; None: it is damaged."""
    if kind is None or kind >= 0:
        return kind
    if kind in LINES:
        end = start
        for _ in range(LINES[kind]):
            end = data.find(b"\n", end) + 1
            if not end:
                return None
        return end - start
    width = LENGTHS[kind]
    return width + int.from_bytes(data[start : start + width], "little")


def _number(argument: bytes, code: int) -> int:
    return int(argument) if code == ord("p") else int.from_bytes(argument, "little")


def _plain_key(key: Any) -> Any:
    return key.encode() if isinstance(key, str) else key


def _plain(value: Any) -> Any:
    """The value that stand-ins stand for; also within a list."""
    if isinstance(value, _Array):
        return value.array()
    if isinstance(value, list):
        return [item.number() if isinstance(item, _Scalar) else item for item in value]
    return value


class _Array:
    """Stand-in for `_reconstruct(ndarray, ...)`; its state is (version, shape, dtype, order, bytes)."""

    __slots__ = ("state",)

    def __init__(self, *_arguments: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> npt.NDArray[Any]:
        """The array, which shares its bytes; raises `ValueError` unless it is of whole numbers in C order."""
        _version, shape, kind, fortran, data = self.state
        if not isinstance(kind, _Kind) or fortran:
            raise ValueError("an array is not of whole numbers in C order")
        dtype = kind.dtype()
        if not isinstance(data, bytes | bytearray) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array is damaged")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {tuple(shape)} holds {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape)


class _Buffered(_Array):
    """Stand-in for `_frombuffer(bytes, dtype, shape, order)`, by which NumPy writes arrays in protocol 5."""

    __slots__ = ()

    def __init__(self, data: object, kind: object, shape: object, order: object) -> None:
        super().__init__()
        self.state = 1, shape, kind, order != "C", data


class _Scalar:
    """Stand-in for `scalar(dtype, bytes)`: one NumPy number."""

    __slots__ = ("data", "kind")

    def __init__(self, kind: object, data: object = None) -> None:
        self.kind, self.data = kind, data

    def __setstate__(self, state: object) -> None:
        """Ignore a state; a number has none."""

    def number(self) -> int:
        """The number; raises `ValueError` unless it is a whole one."""
        array = _Array()
        array.state = 1, (), self.kind, False, self.data
        return int(array.array())


class _Kind:
    """Stand-in for `numpy.dtype(code, ...)`; its state is (version, byte order, ...)."""

    __slots__ = ("code", "state")

    def __init__(self, code: object, *_arguments: object) -> None:
        self.code, self.state = code, (3, "|")

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def dtype(self) -> np.dtype[Any]:
        """The type; raises `ValueError` unless it is of whole numbers."""
        code, order = (
            text.decode("latin1") if isinstance(text, bytes) else text for text in (self.code, self.state[1])
        )
        if not isinstance(code, str) or not re.fullmatch("[|<>=]?[iu][1248]", code):
            raise ValueError(f"an array is of type {code!r:.40}, not of whole numbers")
        if order not in ("|", "<", ">", "="):
            raise ValueError("the type of an array is damaged")
        return np.dtype(code).newbyteorder(order)


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
    ("numpy.core.numeric", "_frombuffer"): _Buffered,
    ("numpy._core.numeric", "_frombuffer"): _Buffered,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "scalar"): _Scalar,
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

    def readinto(self, target: memoryview) -> int:
        """Fill the target, which `pickle` makes for long bytes; the number of bytes, less at the end."""
        piece = self.read(len(target))
        target[: len(piece)] = piece
        return len(piece)

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
