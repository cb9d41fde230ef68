"""Writing a data set: streamed to a temporary file, read back, compared, then renamed.

Shapes: B rows of a batch.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kdcl_dist.data.dataset import ArrowDataset, Info
from kdcl_dist.errors import DataError, one_line

__all__ = ["Batch", "content_digest", "write_batches", "write_dataset"]

#: Bounds of a record batch, which is held in memory whole.
BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20

#: labels_B and stored images: an array of uint8 with B rows of raw pixels, or a list of B `bytes`.
Batch = tuple["npt.NDArray[Any] | Sequence[int]", "npt.NDArray[np.uint8] | Sequence[bytes]"]


def write_dataset(path: Path, samples: Iterable[tuple[int, bytes]], info: Info) -> str:
    """Write samples of (label, stored bytes) as one `.arrow` file; result and errors as `write_batches`."""
    return write_batches(path, _batched(samples), info)


def write_batches(path: Path, batches: Iterable[Batch], info: Info) -> str:
    """Write batches of samples as one `.arrow` file; returns its `content_digest`.

    The file gets its name only after it was read back and found equal to the samples.

    Raises:
        DataError: the folder cannot be written, a sample does not fit `info`, or the file reads back
            otherwise.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = _write(temporary, batches, info)
        if (found := content_digest(temporary)) != written:
            raise DataError(f"{path}: what was written differs when read back ({written} became {found})")
        temporary.replace(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be written: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be a file: the error above names it
            temporary.unlink(missing_ok=True)
    return written


def content_digest(path: Path) -> str:
    """A SHA-256 over all labels and stored bytes of one `.arrow` file, read from disk.

    Raises:
        DataError: as `ArrowDataset`.
    """
    ArrowDataset(str(path))  # refuses damage, other formats and labels out of range
    digest = hashlib.sha256()
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            _add(digest, reader.get_batch(index))
    return digest.hexdigest()


def _batched(samples: Iterable[tuple[int, bytes]]) -> Iterator[Batch]:
    labels: list[int] = []
    images: list[bytes] = []
    size = 0
    for label, image in samples:
        labels.append(label)
        images.append(image)
        size += len(image)
        if len(labels) == BATCH_ROWS or size >= BATCH_BYTES:
            yield labels, images
            labels, images, size = [], [], 0
    if labels:
        yield labels, images


def _write(path: Path, batches: Iterable[Batch], info: Info) -> str:
    schema, digest = info.schema(), hashlib.sha256()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for labels_B, images in batches:
            if len(labels_B) != len(images):
                raise pa.ArrowInvalid(f"{len(labels_B)} labels for {len(images)} images")
            arrays = [_labels(labels_B), _stored(images, schema.field("image").type)]
            batch = pa.record_batch(arrays, schema=schema)
            _add(digest, batch)
            writer.write_batch(batch)
    return digest.hexdigest()


def _labels(labels_B: npt.NDArray[Any] | Sequence[int]) -> pa.Array:
    wide_B = np.asarray(labels_B, np.int64)
    narrow_B = wide_B.astype(np.int32)
    if not np.array_equal(narrow_B, wide_B):
        raise pa.ArrowInvalid("a label does not fit 32 bits")
    return pa.Array.from_buffers(pa.int32(), len(narrow_B), [None, pa.py_buffer(narrow_B)])


def _stored(images: npt.NDArray[np.uint8] | Sequence[bytes], kind: pa.DataType) -> pa.Array:
    if not isinstance(images, np.ndarray):
        return pa.array(images, kind)
    if images.dtype != np.uint8 or images.nbytes != len(images) * kind.byte_width:
        raise pa.ArrowInvalid(f"rows of {images.dtype} {images.shape[1:]} do not fit {kind}")
    buffer = pa.py_buffer(np.ascontiguousarray(images))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(images), [None, buffer])


def _add(digest: Any, batch: pa.RecordBatch) -> None:
    """Add a batch's labels, lengths of images and images to a digest, without copying them."""
    labels_B, images = batch.column(0), batch.column(1)
    digest.update(np.from_dlpack(labels_B))
    if pa.types.is_fixed_size_binary(images.type):
        start, stop = images.offset, images.offset + len(images)
        width = images.type.byte_width
        digest.update(memoryview(images.buffers()[1])[start * width : stop * width])
        return
    offsets = np.frombuffer(images.buffers()[1], np.int32)[images.offset :][: len(images) + 1]
    digest.update(np.diff(offsets))
    if images.buffers()[2] is not None:
        digest.update(memoryview(images.buffers()[2])[offsets[0] : offsets[-1]])
