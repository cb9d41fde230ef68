"""The head of Ray dies while a run trains: `pytest -m slow tests/integration/test_head_ray.py`, 2 minutes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import ray
from cohorts import Inject, MakeRecipe, recipe_text
from equality import check
from ray.cluster_utils import Cluster
from rays import start_ray

from kdcl_dist.launch.ray import driver
from kdcl_dist.run.checkpoint import latest
from kdcl_dist.run.events import CheckpointSaved, Event
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

REDIS = shutil.which("redis-server")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
#: Seconds after which Ray's processes end without a head.
RAY_S = 60


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A server of its own, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen([str(REDIS), *options], stdout=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A Ray of one host, whose control store can be killed."""
    made = Cluster()
    try:
        start_ray(lambda: made.add_node(num_cpus=4, include_dashboard=False))
        yield made
    finally:
        ray.shutdown()
        head = made.head_node
        with suppress(Exception):  # without a control store it fails half-way
            made.shutdown()
        for _, process in head.live_processes() if head else ():
            process.kill()


def processes_of(storage: Path) -> list[str]:
    """The processes of a run and the workers that started them, which all have this test's variable."""
    found, mark = [], f"KDCL_TEST_HEAD={storage}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if mark in (entry / "environ").read_bytes() and "kdcl" in (entry / "cmdline").read_text():
                found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
    return found


@pytest.mark.skipif(REDIS is None, reason="needs redis-server (Debian: redis-server)")
def test_with_a_redis_the_run_goes_on_while_the_head_is_away_and_after(
    inject: Inject, make_recipe: MakeRecipe, make_run: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students and the coordinator are replaced without a head; a worker of Ray when it is back."""
    away = tmp_path / "away"
    inject("b", "gather", 4, "hold", until=away)
    without = [inject("b", "forward", 5, "kill"), inject("coordinator", "ensemble", 7, "kill")]
    with redis(tmp_path) as address:
        monkeypatch.setenv("RAY_REDIS_ADDRESS", address)
        with cluster() as made:
            ray.init(address=made.address, log_to_driver=False)
            run: Run = make_run(  # type: ignore[operator]
                make_recipe("failure.max_failures=4", "batch_size=20", "limits.step_s=100", "epochs=4")
            )
            events: list[Event] = []

            def on_event(event: Event) -> None:
                events.append(event)
                if event == CheckpointSaved(3):
                    made.head_node.kill_gcs_server()
                    away.touch()
                if event == CheckpointSaved(9):
                    assert all(fault.exists() for fault in without)
                    made.head_node.start_gcs_server()

            assert driver.launch(run, on_event, threading.Event())
    check(run)
    record = read_record(run.folder)
    assert record["state"] == "finished"
    assert [cause["student"] for cause in record["failures"]["causes"]] == ["b", None]


def test_without_one_the_run_takes_a_checkpoint_and_ends_in_one_line(
    data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(data))
    monkeypatch.setenv("KDCL_TEST_HEAD", str(tmp_path))
    storage, long = tmp_path / "runs", ("students.a.model=nets:Paced", "batch_size=10", "epochs=400")
    sets = [word for item in (*long, "checkpoint.every_epochs=400") for word in ("--set", item)]
    command = [sys.executable, "-m", "kdcl_dist", "train", str(recipe), "--storage", str(storage)]
    with cluster() as made:
        address = made.address
        monkeypatch.setenv("RAY_ADDRESS", address)
        run = subprocess.Popen(
            [*command, "--launcher", "ray", "--name", "x", *sets], stderr=subprocess.PIPE, text=True
        )
        folder, deadline = Folder(str(storage)) / "x", time.monotonic() + 300
        while read_record(folder).get("state") != "running":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        made.head_node.kill_gcs_server()
        _, written = run.communicate(timeout=300)
        assert run.returncode == 1, written
        last = written.splitlines()[-1]
        assert last.startswith("kdcl: KdclError: ")
        assert f"the head of the Ray cluster, {address}, is away for {RAY_S // 2} s" in last
        assert last.endswith("start the cluster again, and use --resume")
        assert "Traceback" not in written
        deadline = time.monotonic() + 3 * RAY_S
        while left := processes_of(tmp_path):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
    saved = latest(folder, print)
    assert saved is not None
    assert 0 < saved.step < 2400
