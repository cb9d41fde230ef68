"""Writing a data set of samples that are no images, sample by sample.

    with SampleWriter("train.arrow", classes=["de", "en"]) as writer:
        writer.add("de", {"tokens": torch.tensor([4, 8, 15])})

Samples go to a temporary file first: whether the first axis of a tensor differs is known at the end. The data
set is made of it then, read back, compared, and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from kdcl_dist.data.arrow_file import open_table
from kdcl_dist.data.arrow_samples import DTYPES, ArrowSamples, SampleInfo, flat, is_possible
from kdcl_dist.data.first_samples import check_finite
from kdcl_dist.data.layout import Column, Layout
from kdcl_dist.data.samples import Sample, named
from kdcl_dist.data.statistics import Moments
from kdcl_dist.errors import DataError, one_line

__all__ = ["SampleWriter"]

#: Bounds of a record batch, which is held in memory whole.
BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20


class SampleWriter:
    """Writes samples as one `.arrow` file; the file appears when the `with` block ends without an error.

    Args:
        path: of the file; one that exists is replaced.
        classes: class names; a label is an index into this list, or a name in it.
        source, license: origin of the data, and terms of use.

    Raises:
        DataError: class names are not different; at the end also: the file cannot be written, has no
            samples, or reads back otherwise.
    """

    def __init__(
        self, path: str | Path, classes: Sequence[str], *, source: str = "", license: str = ""
    ) -> None:
        self.path, self.classes, self.source, self.license = Path(path), tuple(classes), source, license
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise DataError(f"{path}: classes must be names that differ, at least one")
        self._temporary = self.path.with_name(f"{self.path.name}.samples.part")
        self._layout: Layout | None = None
        self._sink: Any = None
        self._labels: list[int] = []
        self._samples: list[Sample] = []
        self._count = self._bytes = 0

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._naming_path():
                    self._finish()
            elif self._sink is not None:
                self._sink.close()
        finally:
            with contextlib.suppress(OSError):  # the folder may be a file
                self._temporary.unlink(missing_ok=True)

    def add(self, label: int | str, sample: Sample) -> None:
        """Add one sample.

        Args:
            label: of its class, or the class's name.
            sample: a tensor, or a tuple or a dict of tensors.

        Raises:
            DataError: the label is of no class; or the sample is of another layout than those before, of a
                type that cannot be written, or has NaN.
        """
        where = f"{self.path}: sample {self._count}"
        if label not in (self.classes if isinstance(label, str) else range(len(self.classes))):
            raise DataError(f"{where}: label {label!r} is none of the {len(self.classes)} classes")
        try:
            layout = Layout.of(sample)
            joined = layout.joined(self._layout or layout)
        except ValueError as error:
            raise DataError(f"{where} cannot stand beside those before: {error}") from error
        for column in layout.columns:
            shape = (None, *column.shape[1:]) if column.shape else ()  # an empty sequence is one
            if not is_possible(replace(column, shape=shape)) or column.name == "label":
                raise DataError(
                    f"{where}: {column} cannot be written: types are {', '.join(DTYPES)}, no axis but the "
                    "first is empty, and no tensor is named 'label'"
                )
        check_finite(where, sample)
        self._layout = joined
        self._samples.append(sample)
        self._labels.append(self.classes.index(label) if isinstance(label, str) else int(label))
        self._count += 1
        self._bytes += sum(tensor.nbytes for tensor in named(sample).values())
        if len(self._samples) == BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write the samples that are held in memory, all tensors as lists of any length."""
        assert self._layout is not None
        columns = [
            _lists([named(sample)[c.name] for sample in self._samples], c) for c in self._layout.columns
        ]
        names = ["label", *(column.name for column in self._layout.columns)]
        batch = pa.record_batch([pa.array(self._labels, pa.int32()), *columns], names)
        with self._naming_path():
            if self._sink is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._sink = pa.ipc.new_file(str(self._temporary), batch.schema)
            self._sink.write_batch(batch)
        self._labels, self._samples, self._bytes = [], [], 0

    def _finish(self) -> None:
        if self._samples:
            self._flush()
        if self._sink is None or self._layout is None:
            raise DataError(f"{self.path}: no samples were added")
        self._sink.close()
        batches = open_table(self._temporary).to_batches()
        mean, std = _statistics(batches, self._layout)
        info = SampleInfo(
            self.classes, self._layout.kind, self._layout.columns, mean, std, self.source, self.license
        )
        _write(self.path, batches, info)

    @contextlib.contextmanager
    def _naming_path(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be written: {one_line(error)}") from error


def _lists(tensors: Sequence[Any], column: Column) -> pa.Array:
    """The numbers of each tensor as a list."""
    arrays = [tensor.detach().cpu().reshape(-1).numpy() for tensor in tensors]
    values = np.concatenate(arrays)
    stored = pa.array(values.view(np.uint8) if column.dtype == "bool" else values, DTYPES[column.dtype])
    offsets = np.cumsum([0, *(array.size for array in arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), stored)


def _statistics(
    batches: Sequence[pa.RecordBatch], layout: Layout
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """Mean and deviation of each feature of the floating-point columns."""
    moments = {column.name: Moments(column.features) for column in layout.columns if column.is_floating}
    for batch in batches:
        for name, each in moments.items():
            each.add(flat(batch[name].values))
    mean = {name: tuple(each.mean_F.tolist()) for name, each in moments.items()}
    return mean, {name: tuple(each.std_F.tolist()) for name, each in moments.items()}


def _write(path: Path, batches: Sequence[pa.RecordBatch], info: SampleInfo) -> None:
    """Write the lists in the types of the layout; the file gets its name when it reads back as written."""
    schema, temporary = info.schema(), path.with_name(f"{path.name}.part")
    typed = [pa.record_batch(list(map(_typed, batch.columns, schema)), schema=schema) for batch in batches]
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in typed:
                writer.write_batch(batch)
        found = [batch for table in ArrowSamples(str(temporary)).tables for batch in table.to_batches()]
        if _digest(found) != _digest(typed):
            raise DataError(f"{path}: what was written differs when read back")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _typed(column: pa.Array, field: pa.Field) -> pa.Array:
    """A column in the type of its field: lists of one length as fixed-size lists of it, without copying."""
    if not pa.types.is_fixed_size_list(field.type):
        return column
    return pa.FixedSizeListArray.from_arrays(column.values, type=field.type)


def _digest(batches: Sequence[pa.RecordBatch]) -> str:
    """A SHA-256 over labels, lengths of lists and numbers."""
    digest = hashlib.sha256()
    for batch in batches:
        parts = [flat(batch.column(0))]
        for column in batch.columns[1:]:
            parts += [flat(column.values)]
            parts += [flat(column.offsets)] if pa.types.is_list(column.type) else []
        for part in parts:
            digest.update(part.tobytes())
    return digest.hexdigest()
