"""Paths and URIs of storage: adding names, hiding secrets, opening file systems."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pyarrow as pa
from pyarrow import fs

__all__ = ["OBJECT_STORES", "join", "open_uri", "without_secret"]

#: Seconds for an object store to connect, and to answer; the SDK's 3 s are too short for a checkpoint.
CONNECT_S, ANSWER_S = 5.0, 10.0
#: File systems in which a folder exists only through its files.
OBJECT_STORES = (fs.S3FileSystem, fs.GcsFileSystem)


def join(uri: str, name: str) -> str:
    """A path or URI with a name added to its path, before the query if there is one."""
    path, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def without_secret(uri: str) -> str:
    """The URI without credentials: `s3://key:secret@bucket` becomes `s3://***@bucket`."""
    return re.sub(r"//[^/@]*:[^/@]*@", "//***@", uri)


def open_uri(uri: str) -> tuple[Any, str]:
    """The file system and the path in it, with time limits of seconds; the libraries' are minutes.

    Raises:
        ValueError: the URI cannot be understood.
        OSError: the store does not answer the request for its region.
    """
    try:
        system, root = fs.FileSystem.from_uri(uri)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    if isinstance(system, OBJECT_STORES):
        # from_uri takes no limits: the options that it found make a second file system, with limits.
        make, (options,) = system.__reduce__()
        system = make(options | _limits(system, uri))
    return system, root.rstrip("/") if len(root) > 1 else root


def _limits(system: Any, uri: str) -> dict[str, Any]:
    if isinstance(system, fs.GcsFileSystem):
        return {} if "retry_limit_seconds" in uri else {"retry_time_limit": timedelta(seconds=ANSWER_S)}
    return {
        "request_timeout": ANSWER_S,
        "connect_timeout": CONNECT_S,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=1),
        "allow_delayed_open": True,  # a file below 10 MB is one request instead of three
    }
