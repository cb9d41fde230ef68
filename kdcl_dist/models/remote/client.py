"""Asking a served network for logits, with time limits and retries.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

import torch
from pydantic import ValidationError
from torch import Tensor

from kdcl_dist.errors import ModelError, StudentLost, one_line
from kdcl_dist.models.remote.served import Served
from kdcl_dist.models.remote.time_limit import cut_off
from kdcl_dist.models.remote.wire import decode, encode

__all__ = ["Endpoint"]

#: Seconds before the second attempt; each later wait is twice as long, up to the longest.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
#: Bytes of the largest description, and of an answer besides its numbers.
MAX_DESCRIPTION, MAX_HEADER = 16 << 20, 1 << 16


class Endpoint:
    """A served network, asked from one thread at a time.

    Args:
        url: of the server, `http://` or `https://`.
        limit_s: for an answer, all attempts together.
    """

    def __init__(self, url: str, limit_s: float) -> None:
        self.url, self.limit_s = url, limit_s
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.connection = kind(parts.hostname or "", parts.port, timeout=limit_s)
        self.path = parts.path.rstrip("/")

    def describe(self) -> Served:
        """What the server tells of its network.

        Raises:
            ModelError: it is no server of a network.
            StudentLost: it gives no answer in time.
        """
        body = self._ask("GET", f"{self.path}/", b"", MAX_DESCRIPTION)
        try:
            return Served.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ModelError(
                f"endpoint {self.url} describes no network that `kdcl serve` of this version serves: "
                f"{where or 'its answer'}: {first['msg'][:200]}"
            ) from None

    def logits(self, tensors: Mapping[str, Tensor], classes: int) -> Tensor:
        """The logits (B, C), float32, of a batch: its tensors on the CPU, by their names.

        Raises:
            ModelError: the server refuses the batch, or its answer is none: of another shape or type.
            StudentLost: it gives no answer in time.
        """
        count = len(next(iter(tensors.values())))
        body = self._ask("POST", f"{self.path}/logits", encode(tensors), 8 * count * classes + MAX_HEADER)
        try:
            found = decode(body)
        except ValueError as error:
            raise ModelError(f"endpoint {self.url}: its answer is damaged: {error}") from None
        logits_BC = found.get("logits", torch.empty(0))
        if tuple(logits_BC.shape) != (count, classes) or not logits_BC.is_floating_point():
            kind = str(logits_BC.dtype).removeprefix("torch.")
            raise ModelError(
                f"endpoint {self.url}: its answer has logits {kind} {tuple(logits_BC.shape)}, where "
                f"({count}, {classes}) floating-point numbers are needed"
            )
        return logits_BC.float()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _ask(self, method: str, path: str, body: bytes, limit: int) -> bytearray:
        """The body of an answer; attempts that fail are repeated until the time is over."""
        end_s, wait_s = time.monotonic() + self.limit_s, FIRST_WAIT_S
        while True:
            try:
                return self._attempt(method, path, body, limit, end_s - time.monotonic())
            except (OSError, HTTPException) as error:
                self.close()
                if time.monotonic() + wait_s >= end_s:
                    raise StudentLost(
                        f"endpoint {self.url} gives no answer within {self.limit_s:g} s: {one_line(error)}"
                    ) from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _attempt(self, method: str, path: str, body: bytes, limit: int, timeout_s: float) -> bytearray:
        connection = self.connection
        connection.timeout = timeout_s = max(timeout_s, 0.001)
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(timeout_s)
        with cut_off(connection.sock, timeout_s):
            connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            found = answer.read(limit + 1)
        if answer.status >= 500:
            raise HTTPException(f"{answer.status}: {_line(found)}")
        if len(found) > limit:
            self.close()
            raise ModelError(
                f"endpoint {self.url}: its answer to {method} {path} has more than {limit} bytes"
            )
        if answer.length:  # `read` of a number of bytes does not tell
            raise HTTPException(f"the answer ends {answer.length} bytes before its end")
        if answer.status != 200:
            raise ModelError(f"endpoint {self.url} refuses {method} {path}: {answer.status}: {_line(found)}")
        return bytearray(found)


def _line(body: bytes) -> str:
    """The beginning of an answer's text, in one line."""
    return " ".join(body[:300].decode(errors="replace").split())
