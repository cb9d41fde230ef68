"""Image data sets as Arrow IPC files, memory-mapped: all processes of a host share one copy.

A data set is one `.arrow` file, or a folder of them (shards, in the order of their names). Columns:

    label   int32
    image   raw: fixed-size binary, uint8 pixels in C, H, W order; encoded: binary, JPEG or PNG bytes

The schema's metadata holds, under the key `kdcl`, the JSON of `Info`. A sample's id is its row number.

Shapes: N samples, C channels, H W image.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from kdcl_dist.data.arrow_file import open_table
from kdcl_dist.data.decode import decode
from kdcl_dist.data.first_images import check_images
from kdcl_dist.errors import DataError, of_user_code, one_line
from kdcl_dist.utils.hidden import is_hidden
from kdcl_dist.utils.import_strings import is_import_string, load_object

__all__ = ["ArrowDataset", "ImageDataset", "Info", "channels_of", "fingerprint", "open_dataset"]

FORMAT = 1
KEY = b"kdcl"
#: Bytes that Arrow cannot hold in one value.
LARGEST_IMAGE = 2**31


@runtime_checkable
class ImageDataset(Protocol):
    """What training needs of a data set; a user's own data set is any object with these members."""

    labels: npt.NDArray[np.int64]

    @property
    def classes(self) -> Sequence[str]:
        """Class names; a label is an index into this list."""

    @property
    def channels(self) -> int:
        """Channels of every image."""

    @property
    def mean(self) -> Sequence[float]:
        """Mean of each channel, pixels in [0, 1]."""

    @property
    def std(self) -> Sequence[float]:
        """Standard deviation of each channel, pixels in [0, 1]."""

    def __len__(self) -> int:
        """Number of samples N."""

    def image(self, index: int) -> Tensor:
        """One image: uint8 (C, H, W), or floating point in [0, 1]; the caller may change it."""


@dataclass(frozen=True)
class Info:
    """The metadata of a data set.

    Attributes:
        classes: class names; a label is an index into this list.
        encoding: "raw" pixels or "encoded" JPEG and PNG.
        channels: 1 or 3.
        shape: (C, H, W) of all images if raw, else None.
        mean, std: per channel, of pixels in [0, 1].
        source, license: origin of the data, and terms of use.
    """

    classes: tuple[str, ...]
    encoding: Literal["raw", "encoded"]
    channels: int
    shape: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""
    license: str = ""
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    def schema(self) -> pa.Schema:
        """The Arrow schema of files with this content."""
        image = pa.binary(int(np.prod(self.shape))) if self.shape else pa.binary()
        metadata = {KEY: json.dumps(asdict(self), sort_keys=True).encode()}
        return pa.schema([("label", pa.int32()), ("image", image)], metadata=metadata)


_INFO = TypeAdapter(Info)


class ArrowDataset:
    """A data set on disk, opened memory-mapped.

    Args:
        path: an `.arrow` file, or a folder of them.

    Raises:
        DataError: it is missing, damaged, or not of the format above.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.files = _shards(Path(path))
        self._tables = [open_table(file) for file in self.files]
        self.info = _info(self.files[0], self._tables[0].schema)
        for file, table in zip(self.files, self._tables, strict=True):
            _check_columns(file, table.schema, self.info)
        labels = [
            _labels(file, table, self.info) for file, table in zip(self.files, self._tables, strict=True)
        ]
        self.labels: npt.NDArray[np.int64] = np.concatenate(labels)
        if not len(self.labels):
            raise DataError(f"{path}: the data set has no samples")
        self._chunks = [chunk for table in self._tables for chunk in table["image"].chunks]
        self._starts: list[int] = np.cumsum([0] + [len(chunk) for chunk in self._chunks]).tolist()
        shape = self.info.shape
        self._raw = [_raw(chunk, shape) for chunk in self._chunks] if shape else []

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[type[ArrowDataset], tuple[str]]:
        return ArrowDataset, (self.path,)  # another process maps the same file instead of receiving a copy

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.info.classes

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.info.channels

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, pixels in [0, 1]."""
        return self.info.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, pixels in [0, 1]."""
        return self.info.std

    def data(self, index: int) -> pa.Buffer:
        """One image's stored bytes, without copying."""
        chunk, row = self._locate(index)
        return self._chunks[chunk][row].as_buffer()

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """One raw image (C, H, W), read-only, without copying; for data sets with raw pixels."""
        chunk, row = self._locate(index)
        image_CHW: npt.NDArray[np.uint8] = self._raw[chunk][row]
        return image_CHW

    def image(self, index: int) -> Tensor:
        """One image as uint8 (C, H, W), a copy that the caller may change; `DataError` if it is unreadable.

        A decoded image keeps the decoder's memory layout: the channels of a pixel side by side.
        """
        if self.info.shape is not None:
            return torch.from_numpy(self.pixels(index).copy())
        try:
            pixels_HWC = decode(self.data(index), self.channels)
        except ValueError as error:
            raise DataError(f"{self.path}: the image in row {index} is unreadable: {error}") from error
        return torch.from_numpy(pixels_HWC).permute(2, 0, 1)

    def _locate(self, index: int) -> tuple[int, int]:
        chunk = bisect_right(self._starts, index) - 1
        return chunk, index - self._starts[chunk]

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 over metadata, all labels, file sizes and 64 blocks of each file's bytes.

        Cheap for any size; equal for equal copies on other hosts, and different for other data.
        """
        digest = hashlib.sha256(json.dumps(asdict(self.info), sort_keys=True).encode())
        digest.update(self.labels.tobytes())
        for file in self.files:
            _digest_blocks(digest, file)
        return digest.hexdigest()


def open_dataset(spec: str) -> ImageDataset:
    """Open the data set at a path, or call the factory of an import string `package.module:factory`.

    Raises:
        DataError: as `ArrowDataset`; or the factory fails, or returns something other than a data set.
    """
    if not is_import_string(spec) or Path(spec).exists():
        return ArrowDataset(spec)
    with of_user_code(DataError, f"data set {spec!r}"):
        return _checked(spec, load_object(spec)())


def _checked(spec: str, dataset: Any) -> ImageDataset:
    """A user's own data set, if it has what training needs."""
    if not isinstance(dataset, ImageDataset):
        wanted = ("__len__", "labels", "classes", "channels", "mean", "std", "image")
        missing = [name for name in wanted if not hasattr(dataset, name)]
        raise DataError(f"data set {spec!r}: {type(dataset).__name__} lacks {', '.join(missing)}")
    _check_custom(spec, dataset)
    return dataset


def channels_of(dataset: ImageDataset) -> int | None:
    """Channels of a data set's images; None: its samples are no images."""
    return dataset.channels if isinstance(dataset, ImageDataset) else None


def fingerprint(dataset: ImageDataset) -> str:
    """The data set's `fingerprint` attribute, or a SHA-256 over labels and class names where it has none."""
    own: str | None = getattr(dataset, "fingerprint", None)
    parts = json.dumps(list(dataset.classes)).encode() + np.asarray(dataset.labels, np.int64).tobytes()
    return own or hashlib.sha256(parts).hexdigest()


def _check_custom(spec: str, dataset: ImageDataset) -> None:
    labels = np.asarray(dataset.labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(dataset) or not len(labels):
        raise DataError(
            f"data set {spec!r}: labels must be one whole number a sample, at least one "
            f"(got {labels.dtype} of shape {labels.shape} for {len(dataset)} samples)"
        )
    _check_range(spec, labels, len(dataset.classes))
    _check_scale(spec, dataset.mean, dataset.std, dataset.channels)
    names = [str(name) for name in dataset.classes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"data set {spec!r}: classes names {', '.join(map(repr, twice[:3]))} more than once")
    check_images(f"data set {spec!r}", dataset)


def _check_scale(where: str, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    if not len(mean) == len(std) == channels or not all(value > 0 for value in std):
        raise DataError(
            f"{where}: mean and std must have a number for each of the {channels} channels, and every std "
            f"must be above 0 (got mean {list(mean)}, std {list(std)})"
        )


def _check_range(where: str, labels_N: npt.NDArray[Any], classes: int) -> None:
    outside = np.flatnonzero((labels_N < 0) | (labels_N >= classes))
    if len(outside):
        row = int(outside[0])
        raise DataError(
            f"{where}: the label in row {row} is {int(labels_N[row])}, but there are {classes} classes, "
            f"so labels go from 0 to {classes - 1} ({len(outside)} labels are outside)"
        )


def _shards(path: Path) -> list[Path]:
    try:
        return _list_shards(path)
    except (OSError, ValueError) as error:  # a name too long, a null byte, a folder that may not be read
        raise DataError(f"{str(path)[:200]}: cannot be opened: {one_line(error)[:200]}") from error


def _list_shards(path: Path) -> list[Path]:
    if path.is_dir():
        if not (files := sorted(file for file in path.glob("*.arrow") if not is_hidden(file.name))):
            raise DataError(f"{path}: the folder holds no .arrow file; write one with `kdcl data import`")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file; write a data set with `kdcl data import`")
    return [path]


def _raw(chunk: pa.Array, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The pixels (N, C, H, W) of a chunk of raw images, without copying."""
    flat = np.frombuffer(chunk.buffers()[1], np.uint8) if len(chunk) else np.empty(0, np.uint8)
    size = int(np.prod(shape))
    return flat[chunk.offset * size :][: len(chunk) * size].reshape(len(chunk), *shape)


def _info(file: Path, schema: pa.Schema) -> Info:
    if KEY not in (schema.metadata or {}):
        raise DataError(f"{file}: an Arrow file, but not a data set: its schema has no 'kdcl' metadata")
    text = schema.metadata[KEY]
    try:
        found = json.loads(text).get("format")
        if found != FORMAT:
            raise DataError(f"{file}: data set format {found!r}; this version reads format {FORMAT}")
        info = _INFO.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(repr(part)[:60] for part in first["loc"])
        raise DataError(f"{file}: its 'kdcl' metadata cannot be read: {where}: {first['msg']}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{file}: its 'kdcl' metadata cannot be read: {one_line(error)}") from error
    if info.shape and not (min(info.shape) > 0 and math.prod(info.shape) < LARGEST_IMAGE):
        raise DataError(f"{file}: its 'kdcl' metadata names images of shape {info.shape}")
    if len(set(info.classes)) != len(info.classes):
        raise DataError(f"{file}: its 'kdcl' metadata names a class twice")
    _check_scale(str(file), info.mean, info.std, info.channels)
    return info


def _check_columns(file: Path, schema: pa.Schema, info: Info) -> None:
    # Whole numbers may be written as such: not the text is compared, but what it means.
    if not schema.equals(info.schema()) or _info(file, schema) != info:
        raise DataError(
            f"{file}: columns or metadata differ from the data set's: found {_brief(schema)}, "
            f"expected {_brief(info.schema())}; all shards must be of one import"
        )


def _brief(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _labels(file: Path, table: pa.Table, info: Info) -> npt.NDArray[np.int64]:
    if table["label"].null_count or table["image"].null_count:
        raise DataError(f"{file}: it has rows without label or image")
    # to_numpy() would import pandas into every process.
    chunks = [np.from_dlpack(chunk) for chunk in table["label"].chunks if len(chunk)]
    labels_N: npt.NDArray[np.int64] = np.concatenate([*chunks, np.array([], np.int32)]).astype(np.int64)
    _check_range(str(file), labels_N, len(info.classes))
    return labels_N


def _digest_blocks(digest: Any, file: Path, blocks: int = 64, block_bytes: int = 65536) -> None:
    size = file.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with file.open("rb") as stream:
        for number in range(blocks):
            stream.seek(size * number // blocks)
            digest.update(stream.read(block_bytes))
