"""Paths and URIs of storage: adding names, hiding secrets, opening file systems."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

__all__ = ["OBJECT_STORES", "displayed", "join", "open_uri", "parent", "without_secrets"]

#: Seconds for an object store to connect, and to answer; the SDK's 3 s are too short for a checkpoint.
CONNECT_S, ANSWER_S = 5.0, 10.0
#: Characters of the shortest key that is looked for by itself in a text.
SHORTEST = 4
#: File systems in which a folder exists only through its files.
OBJECT_STORES = (fs.S3FileSystem, fs.GcsFileSystem)


def join(uri: str, name: str) -> str:
    """A path or URI with a name added to its path, before the query if there is one."""
    path, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def parent(uri: str) -> str:
    """A path or URI without the last name of its path: what `join` made it of."""
    path, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{path.rpartition('/')[0]}{mark}{query}"


def displayed(uri: str) -> str:
    """A path, or a URI without its credentials: what every text shows of a storage.

    `s3://key:secret@bucket/runs` becomes `s3://***@bucket/runs`. A secret may hold any character, "/", "@"
    and "?" too, so everything before the last "@" is left out where a ":" stands in it.
    """
    scheme, mark, rest = uri.partition("://")
    credentials, _, place = rest.rpartition("@")
    return f"{scheme}{mark}***@{place}" if ":" in credentials else uri


def without_secrets(text: str, uri: str) -> str:
    """A text of a storage library, which may quote the URI or parts of it, without the URI's credentials."""
    credentials = uri.partition("://")[2].rpartition("@")[0]
    if ":" not in credentials:
        return text
    key, _, rest = credentials.partition(":")
    # A "@" may be of the secret, or of the path behind a shorter one.
    ends = [place for place, character in enumerate(rest) if character == "@"]
    secrets = [rest, *(rest[:end] for end in reversed(ends))]
    parts = [part for secret in secrets for part in (secret, unquote(secret))]
    hidden = [credentials, *(part for part in (*parts, key) if len(part) >= SHORTEST)]
    for part in hidden:  # the longest first: none is left that was a part of another
        text = text.replace(part, "***")
    return text


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
