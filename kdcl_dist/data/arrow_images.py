"""Image data sets as Arrow IPC files, memory-mapped: all processes of a host share one copy.

A data set is one `.arrow` file, or a folder of them (shards, in the order of their names). Columns:

    label   int32
    image   raw: fixed-size binary, uint8 pixels in C, H, W order; encoded: binary, JPEG or PNG bytes

The schema's metadata holds, under the key `kdcl`, the JSON of `Info`. A sample's id is its row number.

Shapes: N samples, C channels, H W image.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from kdcl_dist.data.decode import decode
from kdcl_dist.data.shards import KEY, ArrowFiles, read_metadata
from kdcl_dist.errors import DataError

__all__ = ["FORMAT", "ArrowDataset", "Info", "check_scale"]

FORMAT = 1
#: Bytes that Arrow cannot hold in one value.
LARGEST_IMAGE = 2**31


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


class ArrowDataset(ArrowFiles[Info]):
    """Images on disk, opened memory-mapped.

    Args:
        path: an `.arrow` file, or a folder of them.

    Raises:
        DataError: it is missing, damaged, or not of the format above.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._chunks = [chunk for table in self.tables for chunk in table["image"].chunks]
        self._starts: list[int] = np.cumsum([0] + [len(chunk) for chunk in self._chunks]).tolist()
        shape = self.info.shape
        self._raw = [_raw(chunk, shape) for chunk in self._chunks] if shape else []

    @staticmethod
    def read_info(file: Path, schema: pa.Schema) -> Info:
        """The metadata of a file; `DataError` if it is of no use."""
        info = read_metadata(_INFO, FORMAT, file, schema)
        if info.shape and not (min(info.shape) > 0 and math.prod(info.shape) < LARGEST_IMAGE):
            raise DataError(f"{file}: its 'kdcl' metadata names images of shape {info.shape}")
        check_scale(str(file), info.mean, info.std, info.channels)
        return info

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

    def stacked(self, indices_B: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Raw images (B, C, H, W), a copy; for data sets with raw pixels."""
        if len(self._raw) == 1:
            return self._raw[0][indices_B]
        images_BCHW = np.empty((len(indices_B), *self._raw[0].shape[1:]), np.uint8)
        for image_CHW, index in zip(images_BCHW, indices_B.tolist(), strict=True):
            image_CHW[:] = self.pixels(index)
        return images_BCHW

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


def _raw(chunk: pa.Array, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The pixels (N, C, H, W) of a chunk of raw images, without copying."""
    flat = np.frombuffer(chunk.buffers()[1], np.uint8) if len(chunk) else np.empty(0, np.uint8)
    size = int(np.prod(shape))
    return flat[chunk.offset * size :][: len(chunk) * size].reshape(len(chunk), *shape)


def check_scale(where: str, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raise `DataError` if mean and deviation are not those of so many channels."""
    if not len(mean) == len(std) == channels or not all(value > 0 for value in std):
        raise DataError(
            f"{where}: mean and std must have a number for each of the {channels} channels, and every std "
            f"must be above 0 (got mean {list(mean)}, std {list(std)})"
        )
