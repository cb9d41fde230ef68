"""The folder that `Dataset.save_to_disk` of Hugging Face's `datasets` writes.

It has `state.json`, which names the files of Arrow's stream format, and `dataset_info.json` with the
features; a `DatasetDict` has a folder of this kind for each split, and `dataset_dict.json`, which names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcl_dist.data.importers.presence import is_there
from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.files import read_regular

__all__ = ["folder_content", "metadata_names"]

#: Bytes of the largest JSON file that is read.
MAX_BYTES = 64 << 20
REMEDY = "give the folder that save_to_disk wrote"


def folder_content(folder: Path) -> tuple[tuple[Path, ...], dict[str, tuple[str, ...]]]:
    """The Arrow files of a folder, and the class names of its label columns.

    Raises:
        DataError: it is no such folder, holds several splits, or its files are damaged.
    """
    if is_there(folder / "dataset_dict.json") and not is_there(folder / "state.json"):
        splits = _read(folder / "dataset_dict.json").get("splits")
        shown = f"hf:{folder}/{splits[0]}" if isinstance(splits, list) and splits else "hf:FOLDER/train"
        raise DataError(f"{folder}: a DatasetDict of the splits {splits}: name one, as in {shown}")
    return tuple(_files(folder)), _class_names(_read(folder / "dataset_info.json").get("features"))


def metadata_names(metadata: Mapping[bytes, bytes], column: str) -> tuple[str, ...]:
    """Class names in the metadata that `datasets` writes into files; empty if there are none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return _class_names(features).get(column, ())


def _files(folder: Path) -> list[Path]:
    parts = _read(folder / "state.json").get("_data_files")
    names = [str(part.get("filename")) if isinstance(part, dict) else "" for part in parts or ()]
    if not names or not all(name and Path(name).name == name for name in names):
        raise DataError(f"{folder}/state.json: it names no files beside it; {REMEDY}")
    return [folder / name for name in names]


def _class_names(features: Any) -> dict[str, tuple[str, ...]]:
    """The class names of each label column in the JSON of a table's features; empty if there are none."""
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        names = feature.get("names") if isinstance(feature, dict) else None
        texts = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        if texts and len(set(texts)) == len(names or ()):
            found[column] = tuple(texts)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}; {REMEDY}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: it is no JSON object; {REMEDY}")
    return found
