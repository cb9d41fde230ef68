"""Files of a run: on this machine's disk or NFS, on S3 or Google Cloud Storage, through pyarrow.fs.

Operations with temporary errors are retried (`kdcl_dist.run.retry`). Options of an object store are in the
URI's query, `s3://bucket/runs?region=eu-west-1`; adding a name to the path keeps them.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from kdcl_dist.errors import RunFolderError, StorageError, one_line
from kdcl_dist.run.retry import retry
from kdcl_dist.run.uris import OBJECT_STORES, displayed, join, open_uri, parent, without_secrets

__all__ = ["BRIEF_S", "LIMIT_S", "Folder"]

Result = TypeVar("Result")

#: Seconds for which a failing operation is retried, unless a recipe says otherwise.
LIMIT_S = 30.0
#: The same for an operation that can be repeated later, while others wait.
BRIEF_S = 3.0
#: Ending of a partial file.
PARTIAL = ".tmp"


class Folder:
    """One folder. Names are relative paths with slashes; a file appears whole or not at all.

    Args:
        uri: a path or a URI.
        limit_s: seconds for which a failing operation is retried.

    Raises:
        RunFolderError: the URI cannot be understood.
        StorageError: raised by every method: the storage refuses or does not answer.
    """

    def __init__(self, uri: str, limit_s: float = LIMIT_S) -> None:
        self.uri = uri if "://" in uri else str(Path(uri).absolute())
        self.limit_s = limit_s
        try:
            self._fs, self._root = retry(
                lambda: open_uri(self.uri), f"storage {self} cannot be opened", self.limit_s
            )
        except (ValueError, StorageError) as error:
            text = error.message if isinstance(error, StorageError) else one_line(error)
            raise RunFolderError(
                f"storage {str(self)!r} cannot be opened: {without_secrets(text, self.uri)}"
            ) from None  # the cause may show the credentials

    def __reduce__(self) -> tuple[type[Folder], tuple[str, float]]:
        return Folder, (self.uri, self.limit_s)

    def __str__(self) -> str:
        """The folder without options and credentials, for messages."""
        return displayed(self.uri).partition("?")[0] if "://" in self.uri else self.uri

    @property
    def local(self) -> Path | None:
        """The folder as a local path, or None if it is on another file system."""
        return Path(self._root) if isinstance(self._fs, fs.LocalFileSystem) else None

    @property
    def parent(self) -> Folder:
        """The folder around this one."""
        above = object.__new__(Folder)
        above.__dict__ = self.__dict__ | {
            "uri": parent(self.uri),
            "_root": self._root.rpartition("/")[0] or "/",
        }
        return above

    def __truediv__(self, name: str) -> Folder:
        below = object.__new__(Folder)  # same connection: a new one may ask the store for its region
        below.__dict__ = self.__dict__ | {"uri": join(self.uri, name), "_root": f"{self._root}/{name}"}
        return below

    def with_limit(self, limit_s: float) -> Folder:
        """The same folder with another limit, in seconds, for retries."""
        copy = object.__new__(Folder)
        copy.__dict__ = self.__dict__ | {"limit_s": limit_s}
        return copy

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole; it replaces an existing file."""
        try:
            self._try("written to", name, lambda path: self._write(path, data))
        except FileNotFoundError as error:  # its folder cannot be made, as in /proc
            raise StorageError(f"{name} cannot be written to {self}: {one_line(error)}") from error

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A file's content.

        Args:
            name: the file.
            limit: bytes of the largest file that is read; None for any size.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is larger than the limit, or no regular file.
        """

        def read(path: str) -> bytes:
            """The file's content, or a little more than the limit."""
            if self.local is not None and os.path.lexists(path) and not Path(path).is_file():
                raise ValueError(f"{name} is not a regular file")  # the reading of a FIFO would not end
            with self._fs.open_input_stream(path) as stream:
                return bytes(stream.read(None if limit is None else limit + 1))

        data = self._try("read from", name, read)
        if limit is not None and len(data) > limit:
            raise ValueError(f"{name} is larger than {limit:,} bytes")
        return data

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of that name exists; without a name, the folder itself."""
        return bool(self._info(name).type != fs.FileType.NotFound)

    def names(self, name: str = "") -> list[str]:
        """Names directly below a folder, sorted, but for those that are no text; empty without the folder.

        Raises:
            RunFolderError: a file or the like has the place of a folder that a run has made.
        """
        found = None if self.local is None or not name else self.local / name
        if found is not None and found.exists() and not found.is_dir():
            raise RunFolderError(f"{self}/{name} is no folder; delete it")

        def names(path: str) -> list[str]:
            """The folder's names."""
            infos = self._fs.get_file_info(fs.FileSelector(path, allow_not_found=True))
            return sorted(name for info in infos if (name := _name_of(info)) is not None)

        return self._try("listed in", name, names)

    def size(self, name: str) -> int:
        """A file's size in bytes; -1 when it is missing."""
        info = self._info(name)
        return int(info.size) if info.type == fs.FileType.File else -1

    def time(self, name: str) -> float:
        """When a file was written, in seconds since 1970 by the storage's clock; now, if it does not say."""
        return float((self._info(name).mtime_ns or time.time_ns()) / 1e9)

    def total_bytes(self, name: str = "") -> int:
        """The size of all files below a folder in bytes; 0 if the folder does not exist."""

        def total(path: str) -> int:
            """The sum of their sizes."""
            files = self._fs.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
            return sum(file.size or 0 for file in files if file.type == fs.FileType.File)

        return self._try("listed in", name, total)

    def delete_file(self, name: str) -> None:
        """Delete a file if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._try("deleted in", name, self._fs.delete_file)

    def delete(self, name: str = "") -> None:
        """Delete a folder with its content, if it exists; without a name, the folder itself."""
        if self.exists(name):
            with contextlib.suppress(FileNotFoundError):
                self._try("deleted in", name, self._fs.delete_dir)

    def remove_partial(self, name: str = "") -> None:
        """Delete the partial files directly below a folder, which processes left that died in a write."""
        if self.local is not None:  # other file systems show no partial files
            for found in self.names(name):
                if found.endswith(PARTIAL):
                    self.delete_file(f"{name}/{found}")

    def check_writable(self) -> None:
        """Write and delete a small file; raises `RunFolderError` when that fails."""
        try:
            name = f".kdcl-write-test-{uuid.uuid4().hex[:8]}"  # another run may test at the same moment
            self.write(name, b"")
            self.delete_file(name)
        except StorageError as error:
            raise RunFolderError(
                f"storage {str(self)!r} cannot be written: {error.message}; choose another with --storage"
            ) from error

    def _try(self, verb: str, name: str, operation: Callable[[str], Result]) -> Result:
        path = f"{self._root}/{name}".rstrip("/")
        what = f"{name or 'the folder'} cannot be {verb} {self}"
        try:
            return retry(lambda: operation(path), what, self.limit_s)
        except StorageError as error:
            error.message = without_secrets(error.message, self.uri)
            raise error from None  # the cause may show the credentials

    def _info(self, name: str) -> Any:
        return self._try("looked up in", name, self._fs.get_file_info)

    def _write(self, path: str, data: bytes) -> None:
        """Write a file that appears only when complete: on object stores always, on a disk by a rename."""
        if not isinstance(self._fs, OBJECT_STORES):
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        if self.local is not None:
            _write_local(Path(path), data)
            return
        # An exception in the `with` block closes the stream, which would make the bytes so far the file.
        # The block holds one call only, after whose failure S3 refuses to close.
        with self._fs.open_output_stream(path) as stream:
            stream.write(data)


def _name_of(info: fs.FileInfo) -> str | None:
    """The name of a file; None if it is no text, and so none that a run has made."""
    try:
        return str(info.base_name)
    except UnicodeDecodeError:
        return None


def _write_local(path: Path, data: bytes) -> None:
    temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
