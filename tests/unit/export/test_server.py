"""`kdcl serve` and those that ask: logits as from the export itself, and every mistake in one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice
from pathlib import Path
from socket import create_connection, create_server
from socketserver import BaseRequestHandler, TCPServer, ThreadingTCPServer
from typing import Any

import pytest
import torch
from exporting import run
from serving import export_of, serving
from torch import Tensor, nn

from kdcl_dist.data.layout import Column, Layout
from kdcl_dist.data.loader import Batch
from kdcl_dist.errors import DataError, KdclError, ModelError, StudentLost, UserError
from kdcl_dist.export import answering as answering_module
from kdcl_dist.export.prediction import Export
from kdcl_dist.export.server import LogitsServer
from kdcl_dist.models.remote import client
from kdcl_dist.models.remote.client import Endpoint
from kdcl_dist.models.remote.network import ServedNetwork
from kdcl_dist.models.remote.wire import decode, encode

CLASSES = ["cat", "dog", "eel"]
SEQUENCE = Layout("dict", (Column("tokens", "int64", (None,)), Column("mask", "bool", (None,))))


class Flat(nn.Module):
    """Images to logits; refuses a batch whose first number is 13, as a network may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        if float(images.flatten()[0]) == 13:
            raise RuntimeError("an unlucky\nnumber")
        logits_BC: Tensor = self.layer(images.flatten(1))
        return logits_BC


class Counting(nn.Module):
    """Sequences to logits."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return (tokens * mask).double().sum(dim=1, keepdim=True) * torch.tensor([1.0, 2.0, 3.0])


def flat() -> Export:
    return export_of(Flat(), CLASSES, input_shape=(2, 2, 2))


def images(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_the_logits_are_those_of_the_export() -> None:
    export = flat()
    with serving(export) as server, closing(Endpoint(server.url, 120)) as endpoint:
        served = endpoint.describe()
        assert served == server.served
        assert (served.classes, str(served.inputs)) == (CLASSES, "tensor of input: float32 (2, 2, 2)")
        for rows in (1, 6):
            assert torch.equal(endpoint.logits({"input": images(rows)}, 3), export.logits(images(rows)))

        def ask(seed: int) -> bool:
            with closing(Endpoint(server.url, 120)) as own:
                return torch.equal(own.logits({"input": images(4, seed)}, 3), export.logits(images(4, seed)))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(40)))


def test_samples_of_several_tensors() -> None:
    export = export_of(Counting(), CLASSES, format=2, inputs=SEQUENCE)
    with serving(export) as server, closing(Endpoint(server.url, 120)) as endpoint:
        for length in (1, 5):
            batch = {"mask": torch.ones(2, length).bool(), "tokens": torch.arange(2 * length).view(2, length)}
            found = endpoint.logits(batch, 3)
            assert found.dtype == torch.float32
            assert torch.equal(found, export.logits(batch).float())


def asked(server: LogitsServer, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
    with closing(HTTPConnection(*server.server_address[:2], timeout=120)) as connection:
        connection.putrequest(method, path)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")


@pytest.mark.parametrize(
    ("status", "words", "request_of"),
    [
        (404, "GET / and POST /logits", ("GET", "/logits")),
        (404, "GET / and POST /logits", ("POST", "/", b"x")),
        (501, "", ("PUT", "/logits", b"x")),
        (411, "Content-Length is needed", ("POST", "/logits", b"x", "")),
        (411, "Content-Length is needed", ("POST", "/logits", b"x", "-1")),
        (411, "Content-Length is needed", ("POST", "/logits", b"x", "1e3")),
        (413, "at most 10000 bytes", ("POST", "/logits", b"", "10001")),
        (413, "at most 10000 bytes", ("POST", "/logits", b"", "9" * 5000)),
        (400, "no file of safetensors", ("POST", "/logits", b"no tensors")),
        (400, "tensors 'x'", ("POST", "/logits", encode({"x": images(2)}))),
        (400, "tensors ", ("POST", "/logits", encode({}))),
        (400, "'input' is float32 (2, 2)", ("POST", "/logits", encode({"input": images(2)[:, 0]}))),
        (400, "'input' is float64", ("POST", "/logits", encode({"input": images(2).double()}))),
        (400, "0 samples", ("POST", "/logits", encode({"input": images(2)[:0]}))),
        (400, "7 samples", ("POST", "/logits", encode({"input": images(7)}))),
        (400, "0 samples", ("POST", "/logits", encode({"input": torch.tensor(1.0)}))),
        (500, "an unlucky", ("POST", "/logits", encode({"input": torch.full((1, 2, 2, 2), 13.0)}))),
    ],
)
def test_what_is_no_batch_is_refused_in_one_line(
    status: int, words: str, request_of: tuple[Any, ...]
) -> None:
    told: list[str] = []
    with serving(flat(), tell=told.append, max_rows=6, max_bytes=10_000) as server:
        length = {"Content-Length": request_of[3]} if len(request_of) > 3 else {}
        found, text = asked(server, *request_of[:3], **length)
        assert (found, words in text) == (status, True), text
        assert "\n" not in text or status == 501
        assert len(told) == (status == 500)
        assert asked(server, "POST", "/logits", encode({"input": images(1)}))[0] == 200


class Scripted(BaseHTTPRequestHandler):
    """Gives the answers of a list, one after another, and the last again."""

    answers: list[tuple[int, bytes]]

    def do_POST(self) -> None:
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def answering(server: TCPServer) -> Iterator[str]:
    """A server answers in a thread; returns its URL."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def scripted(*answers: tuple[int, bytes]) -> Iterator[str]:
    handler = type("Handler", (Scripted,), {"answers": list(answers)})
    with HTTPServer(("127.0.0.1", 0), handler) as server, answering(server) as url:
        yield url


def test_a_failure_that_passes_is_asked_again() -> None:
    logits_BC = images(2).flatten(1)[:, :3]
    with scripted((503, b"busy"), (500, b""), (200, encode({"logits": logits_BC}))) as url:
        assert torch.equal(Endpoint(url, 60).logits({"input": images(2)}, 3), logits_BC)


class Clock:
    """In place of the module `time`: it moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ((400, b"not such\n a batch"), ModelError, "refuses POST /logits: 400: not such a batch"),
        ((302, b""), ModelError, "refuses POST /logits: 302"),
        ((200, b"hello"), ModelError, "its answer is damaged"),
        ((200, encode({"logit": torch.zeros(2, 3)})), ModelError, "(0,), where (2, 3)"),
        ((200, encode({"logits": torch.zeros(2, 4)})), ModelError, "(2, 4), where (2, 3)"),
        ((200, encode({"logits": torch.zeros(2, 3).long()})), ModelError, "int64 (2, 3), where (2, 3)"),
        ((200, bytes(10**5)), ModelError, "more than"),
        ((503, b"busy"), StudentLost, "no answer within 60 s: HTTPException: 503: busy"),
    ],
)
def test_answers_of_no_use(
    answer: tuple[int, bytes], kind: type[KdclError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(client, "time", clock)
    with scripted(answer) as url, pytest.raises(kind) as caught:
        Endpoint(url, 60).logits({"input": images(2)}, 3)
    assert (clock.now_s > 50) == (kind is StudentLost)
    assert words in str(caught.value)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", json.dumps({"format": 2}).encode()])
def test_what_is_no_served_network(body: bytes) -> None:
    with scripted((200, body)) as url, pytest.raises(ModelError, match="describes no network") as caught:
        Endpoint(url, 60).describe()
    assert "\n" not in str(caught.value)


@contextmanager
def raw(*answers: Iterable[bytes]) -> Iterator[str]:
    """Gives the bytes of a list, one answer a connection and the last again; returns the URL."""
    left = list(answers)

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 20)
            with suppress(OSError):
                for part in left.pop(0) if len(left) > 1 else left[0]:
                    self.request.sendall(part)

    class Server(ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server, answering(server) as url:
        yield url


class Slowly:
    """A beginning, and then something again and again, for 20 s: each comes in time, the whole does not."""

    def __init__(self, beginning: bytes, rest: bytes) -> None:
        self.beginning, self.rest, self.is_over = beginning, rest, False

    def __iter__(self) -> Iterator[bytes]:
        yield self.beginning
        for _ in range(400):
            time.sleep(0.05)
            yield self.rest
        self.is_over = True


@pytest.mark.parametrize(
    ("beginning", "rest"),
    [
        (b"HTTP/1.1 2", b"0"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    ],
    ids=["status", "continue", "body", "body without a length"],
)
def test_an_answer_that_comes_byte_by_byte_has_a_limit(beginning: bytes, rest: bytes) -> None:
    late = pytest.raises(StudentLost, match=r"gives no answer within 0\.5 s")
    with raw(answer := Slowly(beginning, rest)) as url, late:
        Endpoint(url, 0.5).logits({"input": images(2)}, 3)
    assert not answer.is_over


@pytest.mark.parametrize(
    "broken",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 99999\r\n\r\n" + bytes(99_999),
        b"no HTTP",
        b"",
    ],
)
def test_an_answer_that_breaks_off_is_asked_again(broken: bytes) -> None:
    body = encode({"logits": torch.ones(2, 3)})
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with raw([broken], [whole]) as url:
        assert torch.equal(Endpoint(url, 60).logits({"input": images(2)}, 3), torch.ones(2, 3))


def test_a_request_that_comes_byte_by_byte_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcl_dist.export.server.REQUEST_S", 0.3)
    ends = pytest.raises(OSError, match=r"reset|pipe")
    for beginning in (b"POST /logits HTT", b"POST /logits HTTP/1.1\r\nContent-Length: 9999\r\n\r\n"):
        with serving(flat()) as server, create_connection(server.server_address[:2], 120) as client, ends:
            deque(map(client.sendall, Slowly(beginning, b"x")), 0)


def test_connections_that_ask_nothing_keep_nobody_out() -> None:
    with serving(flat()) as server, ExitStack() as silent:
        for _ in range(40):
            silent.enter_context(create_connection(server.server_address[:2], 120))
        with closing(Endpoint(server.url, 120)) as endpoint:
            assert endpoint.logits({"input": images(2)}, 3).shape == (2, 3)


def test_the_end_waits_for_answers_that_are_begun_and_leaves_no_thread() -> None:
    """A thread that the interpreter's end meets in machine code would abort the process."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            begun.set()
            assert go_on.wait(120)
            return images.flatten(1)[:, :3]

    before = set(threading.enumerate())
    with ThreadPoolExecutor(1) as pool, ExitStack() as open_ones:
        with serving(export_of(Slow(), CLASSES, input_shape=(2, 2, 2))) as server:
            endpoint = open_ones.enter_context(closing(Endpoint(server.url, 120)))
            open_ones.enter_context(create_connection(server.server_address[:2], 120))
            answer = pool.submit(endpoint.logits, {"input": images(2)}, 3)
            assert begun.wait(120)
            timer = threading.Timer(0.2, go_on.set)
            timer.start()
        timer.join()
        assert torch.equal(answer.result(), images(2).flatten(1)[:, :3])
        assert not server.handlers
        server.server_close()
    assert set(threading.enumerate()) <= before


def test_a_server_whose_connections_are_all_taken_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcl_dist.export.server.CONNECTIONS", 1)
    with LogitsServer(flat(), "127.0.0.1", 0, max_rows=1, max_bytes=1) as server, ExitStack() as silent:
        thread = threading.Thread(target=server.serve)
        thread.start()
        for _ in range(3):
            silent.enter_context(create_connection(server.server_address[:2], 120))
        server.stopping.set()
        thread.join(120)
        assert not thread.is_alive()


def test_a_body_is_never_the_next_request() -> None:
    hidden = b"GET / HTTP/1.1\r\n\r\n"
    heads = (
        b"GET / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(hidden),
        b"POST /logits HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    )
    for head in heads:
        with serving(flat()) as server, create_connection(server.server_address[:2], 120) as client:
            client.sendall(head + hidden)
            with client.makefile("rb") as answers:
                assert answers.read().count(b"HTTP/1.1 ") == 1


def test_batches_before_an_error_are_used() -> None:
    def loaded() -> Iterator[Batch]:
        for number in range(4):
            ids = torch.tensor([number])
            yield Batch(ids, ids, images(1, number), ids, 0.0)
        raise DataError("the fifth")

    network = ServedNetwork("http://127.0.0.1:1", 3)
    network._logits = lambda inputs: images(1).flatten(1)[:, :3]  # type: ignore[method-assign]
    batches = network.ahead(loaded())
    for batch in islice(batches, 4):
        network(batch.inputs)
    assert batch.ids == 3
    assert not network.asked
    with pytest.raises(DataError, match="the fifth"):
        next(batches)


def test_a_silent_server_keeps_no_process_from_ending() -> None:
    lines = (
        "import sys, threading, torch",
        "from kdcl_dist.models.remote.network import ServedNetwork",
        "network = ServedNetwork(sys.argv[1], 3)",
        "network.limit_s = 3600",
        "threading.Thread(target=network, args=(torch.zeros(1, 2),), daemon=True).start()",
        "sys.stdin.read()",
    )
    with create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", "\n".join(lines), f"http://127.0.0.1:{server.getsockname()[1]}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            server.accept()
            assert process.stdin is not None
            process.stdin.close()
            try:
                assert process.wait(60) == 0
            finally:
                process.kill()


def test_nobody_listens() -> None:
    with HTTPServer(("127.0.0.1", 0), Scripted) as server:
        url = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(StudentLost, match=r"gives no answer within 0\.3 s: ConnectionRefusedError"):
        Endpoint(url, 0.3).describe()


def test_an_address_that_is_taken() -> None:
    taken = pytest.raises(UserError, match="cannot listen there: OSError")
    with serving(flat()) as server, taken:
        LogitsServer(flat(), *server.server_address[:2], max_rows=1, max_bytes=1)
    with pytest.raises(UserError, match="cannot listen there"):
        LogitsServer(flat(), "no such host.", 0, max_rows=1, max_bytes=1)


def test_the_command(exports: dict[str, Path], tmp_path: Path) -> None:
    assert run("serve", tmp_path / "none").exit_code == 2
    command = [sys.executable, "-m", "kdcl_dist", "serve", str(exports["state_dict"]), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        url = lines[1].split()[2]
        silent = create_connection(tuple(url.removeprefix("http://").split(":")), 120)
        with silent, closing(Endpoint(url, 120)) as endpoint:
            assert len(endpoint.describe().classes) == 4
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "ended\n"
            assert process.wait(120) == 0


def test_a_request_is_held_in_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[bytearray] = []
    monkeypatch.setattr(answering_module, "decode", lambda body: bodies.append(body) or decode(body))
    export = export_of(nn.Flatten(), ["cat", "dog"], input_shape=(2, 1, 1))
    body = bytearray(encode({"input": torch.zeros(1, 2, 1, 1)}))
    answering_module.Answering(export).answer(body)
    assert bodies[0] is body
