"""A real S3 server on this machine, and a proxy in front of it that can be told to misbehave."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pyarrow.fs as fs

#: What the proxy does with a request, given its method and path: None passes it on, "cut" closes the
#: connection, a float delays it by so many seconds, an int is the status to answer with.
Rule = Callable[[str, str], "str | float | int | None"]


@contextmanager
def server() -> Iterator[int]:
    """moto's S3; the port."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        yield moto.get_host_and_port()[1]
    finally:
        moto.stop()


def uri(port: int, path: str) -> str:
    """A URI of the server; any credentials will do."""
    return f"s3://user:secret@{path}?endpoint_override=127.0.0.1:{port}&region=us-east-1&scheme=http"


def make_bucket(port: int, name: str) -> None:
    fs.FileSystem.from_uri(uri(port, name) + "&allow_bucket_creation=true")[0].create_dir(name)


@dataclass
class Proxy:
    """Passes bytes between its own port and a server's, one thread a direction."""

    target: int
    rule: Rule = lambda method, path: None
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.target))
        threading.Thread(target=self._pass_back, args=(server, client), daemon=True).start()
        with client, server, suppress(OSError):
            while data := client.recv(1 << 16):
                if match := re.match(rb"(GET|PUT|POST|HEAD|DELETE) (\S+) HTTP", data):
                    method, path = match[1].decode(), match[2].decode()
                    self.seen.append((method, path))
                    if not self._pass(client, self.rule(method, path)):
                        return
                server.sendall(data)

    def _pass(self, client: socket.socket, verdict: str | float | int | None) -> bool:
        """Do what the rule says; whether the request goes on."""
        if isinstance(verdict, float):
            time.sleep(verdict)
        elif isinstance(verdict, int):
            client.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % verdict)
        return verdict is None or isinstance(verdict, float)

    def _pass_back(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
