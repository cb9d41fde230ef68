"""Real servers of MLflow and TensorBoard on this machine, and what wandb has written offline."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Seconds for a server to start, far above what any takes on a slow and busy machine.
START_S = 240.0


@contextmanager
def server(*arguments: str, **environment: str) -> Iterator[None]:
    """A Python module that serves, in a process group of its own, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """`mlflow server` on a database of its own; the port, which answers after `await_answer`."""
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    artifacts = ["--artifacts-destination", str(folder / "artifacts")]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with server("mlflow", "server", *store, *artifacts, *where, **quiet):
        yield port


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """TensorBoard on the runs of a folder; its URL."""
    port = free_port()
    with server("tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port", str(port)):
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_answer(url: str, accept: Any = lambda text: True) -> str:
    """What a URL answers, as soon as it does and the answer is accepted."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                text: str = answer.read().decode()
            if accept(text):
                return text
        except OSError:
            text = "no answer"
        assert time.monotonic() < deadline, f"{url}: {text}"
        time.sleep(0.2)


def read_wandb(file: Path) -> tuple[dict[str, Any], list[tuple[int, dict[str, float]]]]:
    """The config and the history, by step, of a `.wandb` file: records in the blocks of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    config: dict[str, Any] = {}
    history = []
    for data in _records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            values = {name: value for name, value in items.items() if not name.startswith("_")}
            history.append((record.history.step.num, values))
    return config, history


def _records(data: bytes) -> Iterator[bytes]:
    block, place, whole = 32768, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""
