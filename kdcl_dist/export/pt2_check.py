"""Checking a `.pt2` file before PyTorch reads it, because PyTorch's reader can run code from the file.

That reader unpickles sample inputs, constants and some weights, evaluates text as expressions, and calls any
function below `torch` that the graph names. This check accepts only plain tensors, and a graph of ATen
operators with sizes that are sums and products.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcl_dist.errors import ExportError, one_line
from kdcl_dist.utils.files import check_stored, open_regular

__all__ = ["check_archive"]

#: The files that an archive may hold, below its top folder.
PARTS = re.compile(
    r"(archive_format|archive_version|byteorder|\.data/\w+|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt)"
)
#: The operators that a graph may call.
TARGET = re.compile(
    r"torch\.ops\.aten\.\w+(\.\w+)?|torch\.sym_\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|getitem)"
)
#: The words that a size may contain, besides symbols such as s0.
WORDS = {
    "Symbol",
    "Integer",
    "Add",
    "Mul",
    "Pow",
    "FloorDiv",
    "Mod",
    "Max",
    "Min",
    "positive",
    "integer",
    "True",
}
#: Bytes of the largest JSON part; the graph of resnet101 has less than a tenth.
MAX_JSON_BYTES = 50_000_000
#: What a damaged file raises.
UNREADABLE = (
    *(OSError, zipfile.BadZipFile, ValueError, KeyError, AttributeError, TypeError),
    RecursionError,
)
SIZE = re.compile(r"[\w\s(),'=*+/-]*")


def check_archive(path: Path) -> None:
    """Check that a file of `torch.export.save` holds no code that its reader would run, nor unfolds.

    Raises:
        ExportError: the file may hold such code, or cannot be read.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            check_stored(file)
            trouble = next(_troubles(archive), None)
    except (
        OSError,
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        raise ExportError(
            f"{path}: not a file of torch.export.save: {one_line(error)}; export it again"
        ) from None
    if trouble is not None:
        raise ExportError(
            f"{path}: reading it could run code that is in it ({trouble}); if you trust it, read it with "
            "torch.export.load"
        )


def _troubles(archive: zipfile.ZipFile) -> Iterator[str]:
    names = [entry.filename.lower() for entry in archive.infolist()]
    if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) > 1:
        yield "two parts of one name"
    for entry in archive.infolist():
        name = entry.filename.partition("/")[2]
        if PARTS.fullmatch(name) is None:
            yield f"the part {entry.filename!r}"
        if name.startswith("data/sample_inputs/") and entry.file_size:
            yield "pickled sample inputs"
        if name.endswith(".json"):
            if entry.file_size > MAX_JSON_BYTES:
                raise ValueError(f"{entry.filename!r} is larger than {MAX_JSON_BYTES:,} bytes")
            for key, value in _fields(json.loads(archive.read(entry))):
                yield from _field_troubles(key, value)


def _field_troubles(key: str, value: Any) -> Iterator[str]:
    if key == "use_pickle" and value is not False:
        yield "a pickled tensor"
    if key == "guards_code" and value:
        yield "guards"
    if key == "target" and isinstance(value, str) and TARGET.fullmatch(value) is None:
        yield f"the operator {value!r}"
    if key == "expr_str":
        words = set(re.findall(r"[A-Za-z_]\w*", str(value)))
        if SIZE.fullmatch(str(value)) is None or any(
            word not in WORDS and re.fullmatch(r"[su]\d+", word) is None for word in words
        ):
            yield f"the size {value!r}"


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """All fields at any depth of a JSON document."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield key, child
            yield from _fields(child)
    elif isinstance(value, list):
        for child in value:
            yield from _fields(child)
