"""Tensors as bytes: those of safetensors, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcl_dist.models.remote.wire import DTYPES, decode, encode


def body_of(header: Any, data: bytes = b"") -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data)


def tensors() -> dict[str, torch.Tensor]:
    found = {name: (torch.arange(6).reshape(2, 3) % 2).to(dtype) for name, dtype in DTYPES.items()}
    return found | {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(2, 0),
        "turned": torch.arange(6.0).view(2, 3).T,
    }


def test_they_come_back_as_they_were() -> None:
    given = tensors()
    found = decode(bytearray(encode(given)))
    assert list(found) == list(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_library_of_safetensors_reads_and_writes_the_same() -> None:
    library = pytest.importorskip("safetensors.torch")
    given = {name: tensor.contiguous() for name, tensor in tensors().items()}
    for found in (library.load(encode(given)), decode(bytearray(library.save(given)))):
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], given[name]) for name in given)


def entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


@pytest.mark.parametrize(
    "body",
    [
        bytearray(),
        bytearray(7),
        bytearray(b"\xff" * 8),
        body_of(b"{}")[:9],
        body_of(b"no"),
        body_of(b"[]"),
        body_of(b"[" * 100_000),
        body_of(b"3"),
        body_of({"x": 3}),
        body_of({"x": {}}),
        body_of(entry(), b"123"),
        body_of(entry(), b"12345"),
        body_of(entry(dtype="F31"), b"1234"),
        body_of(entry(dtype=["F32"]), b"1234"),
        body_of(entry(shape=[2]), b"1234"),
        body_of(entry(shape=[-1]), b"1234"),
        body_of(entry(shape=[True]), b"1234"),
        body_of(entry(shape=[10**30, 0]), b""),
        body_of(entry(shape=[10**30, 0], data_offsets=[0, 0])),
        body_of(entry(shape=[2**62, 2**62, 0], data_offsets=[0, 0])),
        body_of(entry(shape=None), b"1234"),
        body_of(entry(data_offsets=[0]), b"1234"),
        body_of(entry(data_offsets=[1, 5]), b"12345"),
        body_of(entry(data_offsets=[4, 0]), b"1234"),
        body_of(entry(data_offsets=[-4, 0]), b"1234"),
        body_of(entry(data_offsets=["0", "4"]), b"1234"),
        body_of(entry(data_offsets=[10**400, 10**400 + 4]), b"1234"),
        body_of(entry() | {"y": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}, b"123456"),
    ],
    ids=range(28),
)
def test_other_bytes_are_refused_in_one_line(body: bytearray) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        decode(body)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, derandomize=True)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
def test_bytes_that_change_raise_nothing_else(place: int, other: bytes) -> None:
    body = bytearray(encode({"a": torch.arange(3.0), "b": torch.ones(2, 2).bool()}))
    place %= len(body)
    body[place : place + len(other)] = other
    try:
        found = decode(body)
    except ValueError:
        return
    assert sum(tensor.nbytes for tensor in found.values()) <= len(body)
