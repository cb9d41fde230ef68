"""What the transport of a step's messages costs: gloo, a socket that the waiting thread reads, shared memory.

    python -m benchmarks.transport --out docs/results/transport.md

Students sleep for as long as a device works, send a message to the coordinator, and wait for its answer of
the same size. The coordinator answers once it has all messages. Nothing is computed or checked, so figures
are bounds for what another transport could save. All processes are of this machine. Each round times all
transports; the time of a step is that of the slowest student.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks.conditions import conditions
from kdcl_dist.exchange.gloo import form_gloo
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.tcp_store import connect_store, host_store
from kdcl_dist.planning.processes import run_in_processes

HOST, LIMIT_S = "127.0.0.1", 60.0
TRANSPORTS = ("gloo", "TCP", "Unix socket", "shared memory")
#: Students, and bytes of a message: 128 samples of 100 classes, 256 of 1000.
SIZES = [(1, 53_000), (4, 53_000), (1, 1_028_000), (8, 1_028_000)]
SLEEP_S = 0.02
STEPS = 10
#: Sends this process's message, or answers; returns when the step is over.
Step = Callable[[], None]


class Place(NamedTuple):
    """A process's place in the star.

    Attributes:
        rank: a student's index; the coordinator is the last.
        students: number of students.
        size: bytes of a message.
        folder: where Unix sockets and shared memory have their names.
    """

    rank: int
    students: int
    size: int
    folder: str

    @property
    def is_coordinator(self) -> bool:
        """Whether this process answers."""
        return self.rank == self.students


def measure(students: int, size: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step by transport, after a sleep of `SLEEP_S`."""
    store, endpoint = host_store(HOST)
    with TemporaryDirectory() as folder:
        places = [Place(rank, students, size, folder) for rank in range(students + 1)]
        by_rank = run_in_processes(_rank, [(endpoint, place, rounds) for place in places])
    del store
    steps_of = [[max(times) for times in zip(*arm, strict=True)] for arm in zip(*by_rank[:-1], strict=True)]
    return {name: median(found) for name, found in zip(TRANSPORTS, steps_of, strict=True)}


def _rank(endpoint: Endpoint, place: Place, rounds: int) -> list[list[float]]:
    """Seconds of each step by transport; those of the first round are left out."""
    torch.set_num_threads(1)
    store: Any = connect_store(endpoint, LIMIT_S)
    found: list[list[float]] = [[] for _ in TRANSPORTS]
    steps = [make(store, place) for make in (_gloo, _tcp, _unix, _shared_memory)]
    for number in range(rounds + 1):
        for times, step in zip(found, steps, strict=True):
            for _ in range(STEPS):
                steps[0]()  # all begin together
                if not place.is_coordinator:
                    time.sleep(SLEEP_S)
                began = time.perf_counter()
                step()
                if number:
                    times.append(time.perf_counter() - began)
    return found


def _gloo(store: Any, place: Place) -> Step:
    """Messages point to point, as the exchange sends them."""
    limit = timedelta(seconds=LIMIT_S)
    group = form_gloo(store, place.rank, place.students + 1, host=HOST, limit=limit)
    mine = torch.zeros(place.size, dtype=torch.uint8)
    theirs = [torch.zeros_like(mine) for _ in range(place.students)]

    def ask() -> None:
        answer: Any = dist.irecv(theirs[0], group=group, group_src=place.students)
        sent: Any = dist.isend(mine, group=group, group_dst=place.students)
        answer.wait()
        sent.wait()

    def answer() -> None:
        arriving: list[Any] = [
            dist.irecv(part, group=group, group_src=rank) for rank, part in enumerate(theirs)
        ]
        for part in arriving:
            part.wait()
        leaving: list[Any] = [dist.isend(mine, group=group, group_dst=rank) for rank in range(place.students)]
        for part in leaving:
            part.wait()

    return answer if place.is_coordinator else ask


def _tcp(store: Any, place: Place) -> Step:
    """Messages through a TCP connection that the waiting thread itself reads."""
    return _socket_step(_connect(store, place, "tcp"), place)


def _unix(store: Any, place: Place) -> Step:
    """Messages through a Unix socket."""
    return _socket_step(_connect(store, place, "unix"), place)


def _shared_memory(store: Any, place: Place) -> Step:
    """Messages copied into and out of shared memory; a byte through a Unix socket wakes the other side."""
    peers = _connect(store, place, "wake")
    mine = torch.zeros(place.size, dtype=torch.uint8)
    ranks = range(place.students) if place.is_coordinator else [place.rank]
    shared = [_message_and_answer(Path(place.folder, str(rank)), place.size) for rank in ranks]

    def ask() -> None:
        (message, answer) = shared[0]
        message.copy_(mine)
        peers[0].sendall(b"m")
        peers[0].recv(1)
        mine.copy_(answer)

    def answer() -> None:
        for peer, (message, _) in zip(peers, shared, strict=True):
            peer.recv(1)
            mine.copy_(message)
        for peer, (_, part) in zip(peers, shared, strict=True):
            part.copy_(mine)
            peer.sendall(b"a")

    return answer if place.is_coordinator else ask


def _message_and_answer(file: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two parts of `size` bytes of memory that all who name the file share."""
    both = torch.from_file(str(file), shared=True, size=2 * size, dtype=torch.uint8)
    return both[:size], both[size:]


def _connect(store: Any, place: Place, name: str) -> list[socket.socket]:
    """The coordinator's connections to its students in their order, or a student's to its coordinator."""
    address: Any = (HOST, 0) if name == "tcp" else f"{place.folder}/{name}"
    family = socket.AF_INET if name == "tcp" else socket.AF_UNIX
    if not place.is_coordinator:
        store.wait([name])
        peer = socket.socket(family)
        peer.settimeout(LIMIT_S)
        peer.connect((HOST, int(store.get(name))) if name == "tcp" else address)
        peer.sendall(bytes([place.rank]))
        return [_without_delay(peer)]
    with socket.socket(family) as listener:
        listener.settimeout(LIMIT_S)
        listener.bind(address)
        listener.listen(place.students)
        store.set(name, str(listener.getsockname()[1] if name == "tcp" else 0).encode())
        found = [_without_delay(listener.accept()[0]) for _ in range(place.students)]
    return [peer for _, peer in sorted(((peer.recv(1)[0], peer) for peer in found), key=lambda pair: pair[0])]


def _without_delay(peer: socket.socket) -> socket.socket:
    """The connection, with a limit for each wait; TCP sends at once."""
    peer.settimeout(LIMIT_S)
    if peer.family == socket.AF_INET:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def _socket_step(peers: list[socket.socket], place: Place) -> Step:
    """A step over stream sockets."""
    mine = memoryview(bytearray(place.size))

    def receive(peer: socket.socket) -> None:
        taken = 0
        while taken < place.size:
            taken += peer.recv_into(mine[taken:])

    def ask() -> None:
        peers[0].sendall(mine)
        receive(peers[0])

    def answer() -> None:
        for peer in peers:
            receive(peer)
        for peer in peers:
            peer.sendall(mine)

    return answer if place.is_coordinator else ask


def main() -> None:
    """Measure all sizes, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = [(*size, measure(*size, arguments.rounds)) for size in SIZES]
    sleep = f"a sleep of {SLEEP_S * 1000:g} ms"
    how = f"{arguments.rounds} alternating rounds of {STEPS} steps after {sleep}, medians"
    lines = [
        "# The transport of a step's messages",
        "",
        *conditions("transport", how),
        "",
        "Milliseconds from the first message to the slowest student's answer, nothing computed between them.",
        "",
        f"| students | KB | {' | '.join(TRANSPORTS)} |",
        f"| ---: | ---: |{' ---: |' * len(TRANSPORTS)}",
    ]
    for students, size, seconds in found:
        cells = " | ".join(f"{seconds[name] * 1000:.2f}" for name in TRANSPORTS)
        lines.append(f"| {students} | {size / 1000:.0f} | {cells} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
