"""JSON documents with one thing wrong, for property-based tests."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

_DEEP = "a value a thousand deep"
#: What stands in place of a value; the last is any JSON document that is small.
VALUES = (
    *([], {}, None, True, "", "x", "../x", "/x", "\ud800", "\x00"),
    *(0, -1, 2**63, 10**30, 0.5, float("inf"), float("-inf"), float("nan"), _DEEP),
    *([[]], [None], {"x": None}, {"": {}}, {"run": "r", "number": float("inf")}, {"error": "KdclError"}),
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from _paths(child, (*path, key))


@st.composite
def damaged(draw: st.DrawFn, document: dict[str, Any]) -> bytes:
    """The document as JSON, with one value replaced or deleted, one key renamed, or cut off."""
    found = {"": copy.deepcopy(document)}
    *parents, key = ("", *draw(st.sampled_from(list(_paths(document)))))
    node: Any = found
    for parent in parents:
        node = node[parent]
    change = draw(st.sampled_from(("replace", "replace", "replace", "delete", "rename", "cut")))
    if change == "replace":
        node[key] = draw(st.sampled_from(VALUES))
    elif change == "delete" and parents:
        del node[key]
    elif change == "rename" and isinstance(node, dict) and parents:
        node[draw(st.sampled_from(("x", "../x", "/x", "\x00", "_x")))] = node.pop(key)
    text = json.dumps(found[""]).replace(json.dumps(_DEEP), "[" * 1000 + "]" * 1000)
    return text[: draw(st.integers(0, len(text))) if change == "cut" else None].encode()
