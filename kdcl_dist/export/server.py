"""An export behind HTTP: batches of samples in, logits out. The protocol: docs/serving.md."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from kdcl_dist.errors import KdclError, UserError, one_line
from kdcl_dist.export.answering import Answering
from kdcl_dist.export.prediction import Export
from kdcl_dist.models.remote.time_limit import cut_off

__all__ = ["LogitsServer"]

#: Connections at a time, and requests that are in memory at a time.
CONNECTIONS, REQUESTS = 256, 16
#: Seconds without a byte of a connection, and for all bytes of a request.
SILENCE_S, REQUEST_S = 60.0, 600.0
#: Seconds between two looks whether the server shall end, and for the last answers.
POLL_S, END_S = 0.5, 20.0


class LogitsServer(ThreadingTCPServer):
    """Answers for an export.

    Args:
        export: the network.
        host, port: to listen at; port 0 is any that is free.
        max_rows: samples of a request.
        max_bytes: of a request.
        tell: takes a line for each request that failed by the network.

    Attributes:
        stopping: set to end `serve`; a signal's handler may do so.
        handlers: the threads of the open connections.

    Raises:
        UserError: the address is taken, or none of this machine.
    """

    allow_reuse_address, timeout = True, POLL_S

    def __init__(
        self,
        export: Export,
        host: str,
        port: int,
        *,
        max_rows: int,
        max_bytes: int,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.answering, self.tell = Answering(export, max_rows, max_bytes), tell
        self.served, self.free = self.answering.served, threading.BoundedSemaphore(CONNECTIONS)
        self.room = threading.BoundedSemaphore(REQUESTS)
        self.stopping, self.handlers = threading.Event(), dict[threading.Thread, socket.socket]()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--host {host} --port {port}: cannot listen there: {one_line(error)}") from error

    @property
    def url(self) -> str:
        """Where the server listens."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def serve(self) -> None:
        """Answer until `stopping` is set."""
        while not self.stopping.is_set():
            self.handle_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, once fewer than `CONNECTIONS` are open."""
        while not self.free.acquire(timeout=POLL_S):
            if self.stopping.is_set():
                self.shutdown_request(request)
                return
        arguments = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self.handlers[thread] = request
        thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self.handlers[threading.current_thread()]
            self.free.release()

    def server_close(self) -> None:
        """Take no more requests, and give the answers to those that are there, for `END_S` at most."""
        super().server_close()
        handlers, deadline = list(self.handlers.items()), time.monotonic() + END_S
        for _, connection in handlers:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RD)
        for thread, _ in handlers:
            thread.join(max(0.0, deadline - time.monotonic()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that went away is no error of the server."""


class _Refused(Exception):
    """A request that gets no logits: the status and a line of text."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class _Handler(BaseHTTPRequestHandler):
    """One connection, which may have several requests."""

    server: LogitsServer
    protocol_version = "HTTP/1.1"
    server_version = "kdcl"
    timeout = SILENCE_S

    def handle_one_request(self) -> None:
        """Take a request and answer it; one whose bytes come too slowly is cut off."""
        with ExitStack() as self.receiving:
            self.receiving.enter_context(cut_off(self.connection, REQUEST_S))
            super().handle_one_request()

    def do_GET(self) -> None:
        """The description of the network."""
        self.close_connection = True  # a body, which is not read, would count as the next request
        self._respond("/", self.server.answering.description, "application/json")

    def do_POST(self) -> None:
        """The logits of a batch."""
        self._respond("/logits", self._logits, "application/octet-stream")

    def _respond(self, path: str, make: Callable[[], bytes], kind: str) -> None:
        """Answer a request of a path, or refuse it in a line of text."""
        try:
            if self.path != path:
                self.close_connection = True
                raise _Refused(HTTPStatus.NOT_FOUND, "there are GET / and POST /logits only")
            status, body = HTTPStatus.OK, make()
        except _Refused as refused:
            status, body, kind = refused.status, refused.text.encode(), "text/plain; charset=utf-8"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _logits(self) -> bytes:
        with self.server.room:
            body = self._body()
            self.receiving.close()
            try:
                return self.server.answering.answer(body)
            except ValueError as error:
                raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
            except KdclError as error:
                self.server.tell(str(error))
                raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from error

    def _body(self) -> bytearray:
        """The body of the request; a connection whose body is not read is closed."""
        length, limit = self.headers.get("Content-Length", ""), self.server.served.max_bytes
        keep, self.close_connection = self.close_connection, True
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed")
        if len(length) > 15 or int(length) > limit:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {limit} bytes")
        body = bytearray(int(length))
        if self.rfile.readinto(body) < len(body):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the request ends before its last byte")
        self.close_connection = keep
        return body

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a training asks thousands of times."""
