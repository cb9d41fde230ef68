"""Structs in Thrift's compact protocol, as in Parquet's footers and page headers."""

from __future__ import annotations

from typing import Any

__all__ = ["Fields", "number", "read_struct", "structs"]

#: The fields of a struct by number: int, bytes, a list, or another struct; None for other kinds.
Fields = dict[int, Any]

#: Types of values.
INTEGERS, BINARY, LISTS, STRUCT = (4, 5, 6), 8, (9, 10), 12
#: Bytes of the values of the other types: True, False, a byte, a floating-point number.
FIXED = {1: 0, 2: 0, 3: 1, 7: 8}
#: Structs and lists within each other that Parquet needs, and more.
MAX_DEPTH = 12


def number(fields: Fields, field: int) -> int:
    """A whole number of 0 or more; raises `ValueError` where there is none."""
    value = fields.get(field)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"field {field} of its metadata is no size")
    return value


def structs(fields: Fields, field: int) -> list[Fields]:
    """A list of structs; raises `ValueError` where there is none."""
    value = fields.get(field)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"field {field} of its metadata is no list")
    return value


def read_struct(data: memoryview, position: int, depth: int = 0) -> tuple[Fields, int]:
    """The struct at a position, and where it ends.

    Raises:
        ValueError: it is cut off, nested too deeply, or a field stands in it twice, which readers merge.
    """
    found: Fields = {}
    field = 0
    while kind := (head := _byte(data, position)) & 15:
        position += 1
        if head >> 4:
            field += head >> 4
        else:
            field, position = _integer(data, position)
        if field in found or not 0 < field < 1 << 15:
            raise ValueError("its metadata has a field twice, or one without a number")
        found[field], position = _value(data, position, kind, depth + 1)
    return found, position + 1


def _value(data: memoryview, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise ValueError("its metadata is nested too deeply")
    if kind in INTEGERS:
        return _integer(data, position)
    if kind == BINARY:
        length, position = _varint(data, position)
        return data[position : position + length], position + length
    if kind == STRUCT:
        return read_struct(data, position, depth)
    if kind in LISTS:
        return _list(data, position, depth)
    if kind not in FIXED:
        raise ValueError("its metadata has a value of no known type")
    return None, position + FIXED[kind]


def _list(data: memoryview, position: int, depth: int) -> tuple[list[Any], int]:
    head = _byte(data, position)
    count, kind, position = head >> 4, head & 15, position + 1
    if count == 15:
        count, position = _varint(data, position)
    if count > len(data) - position:
        raise ValueError("its metadata is cut off")
    items = []
    for _ in range(count):
        # True and False take a byte in a list.
        item, position = (None, position + 1) if kind in (1, 2) else _value(data, position, kind, depth + 1)
        items.append(item)
    return items, position


def _byte(data: memoryview, position: int) -> int:
    if position >= len(data):
        raise ValueError("its metadata is cut off")
    return data[position]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = _byte(data, position)
        position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, position
    raise ValueError("its metadata has a number without an end")


def _integer(data: memoryview, position: int) -> tuple[int, int]:
    """A signed number: its varint counts 0, -1, 1, -2, ..."""
    value, position = _varint(data, position)
    return (value >> 1) ^ -(value & 1), position
