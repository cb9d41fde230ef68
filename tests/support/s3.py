"""A real S3 server on this machine, and a proxy in front of it that can be told to misbehave."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
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
    """Passes bytes between its own port and a server's.

    A thread that ends with the `with` block holds all connections; they end with it. A server that is
    gone is a connection that is cut: whoever still tries to connect is no test's failure.
    """

    target: int
    rule: Rule = lambda method, path: None
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> Proxy:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve()], name="kdcl-proxy")
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port: int = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        listener.close()  # and the end of the loop ends all connections

    async def _connected(self, client: StreamReader, to_client: StreamWriter) -> None:
        """One connection, until either side or the rule ends it."""
        with suppress(OSError), closing(to_client):
            server, to_server = await asyncio.open_connection("127.0.0.1", self.target)
            there = asyncio.create_task(self._pass_on(client, to_client, to_server))
            back = asyncio.create_task(_copy(server, to_client))
            with closing(to_server):
                await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
                there.cancel()
                back.cancel()

    async def _pass_on(self, client: StreamReader, to_client: StreamWriter, to_server: StreamWriter) -> None:
        with suppress(OSError):
            while data := await client.read(1 << 16):
                if match := re.match(rb"(GET|PUT|POST|HEAD|DELETE) (\S+) HTTP", data):
                    method, path = match[1].decode(), match[2].decode()
                    self.seen.append((method, path))
                    diagnosis = self.rule(method, path)
                    if isinstance(diagnosis, float):
                        await asyncio.sleep(diagnosis)
                    elif diagnosis is not None:
                        await _refuse(client, to_client, diagnosis)
                        return
                to_server.write(data)
                await to_server.drain()


async def _refuse(client: StreamReader, to_client: StreamWriter, diagnosis: str | int) -> None:
    """Cut the connection, or answer with a status and wait until the client has closed it."""
    if isinstance(diagnosis, int):
        to_client.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % diagnosis)
        to_client.write_eof()
        while await client.read(1 << 16):
            pass  # closed with data unread, the answer itself could be lost


async def _copy(source: StreamReader, target: StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
