"""Programs without the run's token against a run of real processes."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cohorts import SUPPORT, Inject, MakeRecipe

from kdcl_dist.launch import local
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.handshake import SIZE
from kdcl_dist.run.events import Event, Note, Stepped, Warned
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

#: A state of a socket in /proc/net/tcp.
LISTENS = "0A"


def processes() -> list[Path]:
    """The cohort's processes, in /proc."""
    children = [child for child in multiprocessing.active_children() if child.name.startswith("kdcl-")]
    assert len(children) == 3
    return [Path(f"/proc/{child.pid}") for child in children]


def ports_of_the_cohort() -> list[int]:
    """The TCP ports on which processes of the run listen."""
    files = [file for process in processes() for file in (process / "fd").iterdir()]
    links = [str(file.readlink()) for file in files if file.is_socket()]
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in links}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(line[1].partition(":")[2], 16) for line in lines if line[3] == LISTENS and line[9] in inodes]


def test_a_run_goes_on_while_strangers_attack_its_ports(
    inject: Inject,
    make_recipe: MakeRecipe,
    make_run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attacked = tmp_path / "attacked"
    inject("coordinator", "gather", 3, "hold", until=attacked)
    run, events = make_run(make_recipe("limits.step_s=120")), list[Event]()
    strangers: list[subprocess.Popen[str]] = []
    received: dict[str, list[str]] = {}
    shown: list[bytes] = []
    endpoints: list[Endpoint] = []
    await_endpoint = local._await_endpoint

    def note_endpoint(*arguments: Any) -> Endpoint:
        endpoints.append(await_endpoint(*arguments))
        return endpoints[0]

    def handle(event: Event) -> None:
        events.append(event)
        if isinstance(event, Stepped) and not strangers:  # all groups have formed
            command = [sys.executable, str(SUPPORT / "stranger.py"), *map(str, ports_of_the_cohort())]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            strangers.append(subprocess.Popen(command, text=True, **pipes))
            shown.extend(
                (each / name).read_bytes() for each in processes() for name in ("environ", "cmdline")
            )
            received.update(json.loads(strangers[0].stdout.readline()))
            attacked.touch()

    monkeypatch.setattr(local, "_await_endpoint", note_endpoint)
    try:
        assert local.launch(run, handle, threading.Event())
    finally:
        for stranger in strangers:
            stranger.communicate(timeout=60)
    (answers,) = [answers for answers in received.values() if answers]  # the store; no group takes newcomers
    assert len(received) == 1 + 3
    for answer in map(bytes.fromhex, answers):
        assert run.id.encode() not in answer
        assert answer[SIZE:] in (b"", bytes(SIZE))  # a challenge, and perhaps a refusal
    assert "failures" not in read_record(run.folder)
    assert [event for event in events if isinstance(event, Note | Warned)] == []
    shown += [path.read_bytes() for path in Path(str(run.folder.local)).rglob("*") if path.is_file()]
    shown += [repr(events).encode()]
    assert len(shown) > 10
    assert not [text for text in shown if endpoints[0].token.encode() in text]
