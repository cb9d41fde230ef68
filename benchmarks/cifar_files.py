"""Files in the exact format of CIFAR's python archives: pickles of Python 2 and NumPy 1."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["python2_pickle", "write_cifar10", "write_cifar100"]

CIFAR10 = b"airplane automobile bird cat deer dog frog horse ship truck".split()


def python2_pickle(value: Any) -> bytes:
    """A pickle of a dict, list, bytes, int or array: protocol 2, with Python 2's opcodes for byte strings."""
    return pickle.PROTO + b"\x02" + b"".join(_pieces(value)) + pickle.STOP


def write_cifar10(folder: Path, rows: int, seed: int = 0) -> Path:
    """cifar-10-batches-py with random images, `rows` in each of its six files; returns the folder."""
    inner = folder / "cifar-10-batches-py"
    inner.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = {f"data_batch_{i}": b"training batch %d of 5" % i for i in range(1, 6)}
    for name, label in (names | {"test_batch": b"testing batch 1 of 1"}).items():
        labels = rng.integers(0, 10, rows).tolist()
        content = {b"batch_label": label, b"labels": labels} | _images(rng, rows)
        (inner / name).write_bytes(python2_pickle(content))
    meta = {b"num_cases_per_batch": rows, b"label_names": CIFAR10, b"num_vis": 3072}
    (inner / "batches.meta").write_bytes(python2_pickle(meta))
    return inner


def write_cifar100(folder: Path, train: int, test: int, seed: int = 0) -> Path:
    """cifar-100-python with random images; returns the folder."""
    inner = folder / "cifar-100-python"
    inner.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for name, rows in (("train", train), ("test", test)):
        fine = rng.integers(0, 100, rows)
        labels = {b"fine_labels": fine.tolist(), b"coarse_labels": (fine // 5).tolist()}
        content = {b"batch_label": name.encode()} | labels | _images(rng, rows)
        (inner / name).write_bytes(python2_pickle(content))
    meta = {
        b"fine_label_names": [b"fine_%02d" % i for i in range(100)],
        b"coarse_label_names": [b"coarse_%02d" % i for i in range(20)],
    }
    (inner / "meta").write_bytes(python2_pickle(meta))
    return inner


def _images(rng: np.random.Generator, rows: int) -> dict[bytes, Any]:
    data: npt.NDArray[np.uint8] = rng.integers(0, 256, (rows, 3072), np.uint8)
    return {b"data": data, b"filenames": [b"image_%06d.png" % row for row in range(rows)]}


def _pieces(value: Any) -> Iterable[bytes]:
    if isinstance(value, np.ndarray):
        yield from _array(value)
    elif isinstance(value, dict):
        yield pickle.EMPTY_DICT + pickle.MARK
        for key, entry in value.items():
            yield from _pieces(key)
            yield from _pieces(entry)
        yield pickle.SETITEMS
    elif isinstance(value, list):
        yield pickle.EMPTY_LIST + pickle.MARK
        for entry in value:
            yield from _pieces(entry)
        yield pickle.APPENDS
    elif isinstance(value, bytes):
        short = len(value) < 256
        size = bytes([len(value)]) if short else struct.pack("<i", len(value))
        yield from ((pickle.SHORT_BINSTRING if short else pickle.BINSTRING), size, value)
    else:
        yield pickle.BININT + struct.pack("<i", value)


def _array(array: npt.NDArray[np.uint8]) -> Iterable[bytes]:
    """The opcodes of NumPy 1's `ndarray.__reduce__` in a pickle of Python 2."""
    yield b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    yield pickle.BININT1 + b"\0" + pickle.TUPLE1 + pickle.SHORT_BINSTRING + b"\x01b"
    yield pickle.TUPLE3 + pickle.REDUCE
    shape = b"".join(pickle.BININT + struct.pack("<i", side) for side in array.shape)
    yield pickle.MARK + pickle.BININT1 + b"\x01" + pickle.MARK + shape + pickle.TUPLE
    yield b"cnumpy\ndtype\n" + pickle.SHORT_BINSTRING + b"\x02u1"
    yield pickle.BININT1 + b"\0" + pickle.BININT1 + b"\x01" + pickle.TUPLE3 + pickle.REDUCE
    yield pickle.MARK + pickle.BININT1 + b"\x03" + pickle.SHORT_BINSTRING + b"\x01|"
    yield pickle.NONE * 3 + (pickle.BININT + struct.pack("<i", -1)) * 2 + pickle.BININT1 + b"\0"
    yield pickle.TUPLE + pickle.BUILD + pickle.NEWFALSE
    yield from _pieces(array.tobytes())
    yield pickle.TUPLE + pickle.BUILD
