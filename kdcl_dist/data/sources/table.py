"""A table in files: Parquet, Arrow, CSV, JSON lines, or a folder of Hugging Face's `datasets`."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from kdcl_dist.data.importers.label_values import name_order
from kdcl_dist.data.importers.table_files import open_table
from kdcl_dist.data.shards import KEY
from kdcl_dist.data.sources.cache import digest_of
from kdcl_dist.data.sources.hugging_face import folder_content, metadata_names
from kdcl_dist.data.sources.text_tables import CSV, JSON_LINES, read_text_table
from kdcl_dist.errors import DataError, one_line
from kdcl_dist.utils.data_specs import HUGGING_FACE
from kdcl_dist.utils.hidden import is_hidden

__all__ = ["SUFFIXES", "Table", "find_table", "is_text", "reading"]

#: Ends of names of files that are tables.
SUFFIXES = (".parquet", *CSV, *JSON_LINES)
#: Rows in memory at a time, of columns of numbers and of images.
ROWS, IMAGE_ROWS = 4096, 16


@dataclass(frozen=True)
class Table:
    """A table in files, of the same columns.

    Attributes:
        name: for people, and for the metadata of a data set made of it: the same on all hosts.
        files: in the order of their rows.
        class_names: by column, where Hugging Face's metadata has them.
    """

    name: str
    files: tuple[Path, ...]
    class_names: Mapping[str, tuple[str, ...]]

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns; `DataError` if files differ in them or cannot be read."""
        first = self._schemas[self.files[0]]
        for file, schema in self._schemas.items():
            if not schema.equals(first):
                raise DataError(f"{file}: columns differ from those of {self.files[0].name}")
        return first

    @property
    def content(self) -> str:
        """A digest of each file's size, number and times: it differs when a file's content does."""
        with reading(self.files[0]):
            stats = [file.stat() for file in self.files]
        return digest_of(*([each.st_size, each.st_ino, each.st_mtime_ns, each.st_ctime_ns] for each in stats))

    def names_of(self, column: str) -> tuple[str, ...]:
        """The class names of a label column; empty where the table has none."""
        return self.class_names.get(column) or next(filter(None, self._names(column).values()), ())

    def orders_of(self, column: str) -> dict[str, list[int] | None]:
        """By file: what the numbers of a label column are as numbers of `names_of`, see `name_order`.

        Raises:
            DataError: two files name different classes.
        """
        if column in self.class_names:  # of all files
            return {}
        named = {str(file): names for file, names in self._names(column).items() if names}
        first = next(iter(named), "")
        return {file: name_order(names, named[first], file, first) for file, names in named.items()}

    def _names(self, column: str) -> dict[Path, tuple[str, ...]]:
        return {file: metadata_names(each.metadata or {}, column) for file, each in self._schemas.items()}

    @cached_property
    def _schemas(self) -> dict[Path, pa.Schema]:
        return {file: self._schema(file) for file in self.files}

    def batches(
        self, columns: list[str], *, images: bool = False
    ) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """The columns in parts: name of the file, its row that is the first, and the rows.

        Raises:
            DataError: a file is damaged, or unfolds to far more than its size.
        """
        for file in self.files:
            row = 0
            with reading(file):
                for batch in self._batches(file, columns, IMAGE_ROWS if images else ROWS):
                    yield str(file), row, batch
                    row += len(batch)

    @cached_property
    def _texts(self) -> dict[Path, pa.Table]:
        """The tables in text, read once."""
        return {file: read_text_table(file) for file in self.files if is_text(file)}

    def _schema(self, file: Path) -> pa.Schema:
        with reading(file):
            if is_text(file):
                return self._texts[file].schema
            with open_table(file) as table:
                return table.schema

    def _batches(self, file: Path, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        if is_text(file):
            yield from self._texts[file].select(columns).to_batches(max_chunksize=rows)
        else:
            with open_table(file) as table:
                yield from table.batches(columns, rows)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Errors of a table's file as one line that names it.

    Raises:
        DataError: in place of any other error.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, struct.error) as error:
        kind = "JSON lines" if file.suffix.lower() in JSON_LINES else file.suffix.lstrip(".") or "table"
        raise DataError(f"{file}: cannot be read as {kind}: {one_line(error)}") from error


def find_table(spec: str) -> Table | None:
    """The table that a name of a data set means; None if it is none, as a data set of this package.

    Raises:
        DataError: a folder of Hugging Face's cannot be read.
    """
    if spec.startswith(HUGGING_FACE):
        folder = Path(spec.removeprefix(HUGGING_FACE))
        files, class_names = folder_content(folder)
        return Table(f"{HUGGING_FACE}{folder.name}", files, class_names)
    path = Path(spec)
    with reading(path):
        if path.is_dir():
            return _of_folder(path)
        is_table = path.suffix.lower() in SUFFIXES or (path.suffix == ".arrow" and _is_foreign(path))
    return Table(path.name, (path,), {}) if is_table else None


def _of_folder(path: Path) -> Table | None:
    for name in ("state.json", "dataset_dict.json"):
        if (path / name).exists():
            raise DataError(
                f"{path}: a folder of Hugging Face's save_to_disk: write it as {HUGGING_FACE}{path}"
            )
    files = sorted(file for file in path.glob("*.parquet") if not is_hidden(file.name))
    return Table(path.name, tuple(files), {}) if files else None


def _is_foreign(path: Path) -> bool:
    """Whether a file is a whole Arrow file, but not a data set of this package."""
    try:
        with open_table(path) as table:
            return KEY not in (table.schema.metadata or {})
    except (pa.ArrowException, OSError, ValueError, struct.error):
        return False  # told where it is opened


def is_text(file: Path) -> bool:
    """Whether a file's name is that of a table in text."""
    return file.suffix.lower() in (*CSV, *JSON_LINES)
