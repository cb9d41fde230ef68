"""Cohorts on a Ray of several hosts: students that ask for different amounts, and a host that is taken away.

Only Ray believes in the GPUs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from cohorts import Inject, MakeRecipe
from equality import check
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.util.placement_group import placement_group, remove_placement_group
from rays import start_ray

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.launch.preflight.placement import ACCELERATOR
from kdcl_dist.launch.ray import driver, room, trainers
from kdcl_dist.run.events import CheckpointSaved, Event, Note, Started, Stepped, Warned
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]
#: One network on a whole GPU, which is listed last, and three on a third of one.
SMALL = ("x", "y", "z")
STUDENTS = [
    *[{"name": name, "model": "mlp", "resources": {"gpu": 0.3333}} for name in SMALL],
    {"name": "large", "model": "cnn_small", "resources": {"gpu": 1}},
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    patch, made = pytest.MonkeyPatch(), Cluster()
    try:
        patch.delenv("CUDA_VISIBLE_DEVICES")  # else Ray refuses to believe in a GPU
        start_ray(lambda: made.add_node(num_cpus=3, num_gpus=1, include_dashboard=False))
        start_ray(lambda: made.add_node(num_cpus=3, num_gpus=1))
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        patch.undo()


@pytest.fixture
def recipe(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Ray reserves the GPUs; the networks train on the CPU."""
    monkeypatch.setattr(trainers, "devices_on_ray", lambda recipe, needs: ["cpu"] * len(needs))
    return make_recipe(f"students={STUDENTS}", "batch_size=20", "failure.max_failures=3", "limits.step_s=150")


def free_gpus() -> float:
    return float(ray.available_resources().get("GPU", 0.0))


def await_free_gpus(least: float, most: float) -> None:
    """Ray's own figure is late by a moment."""
    deadline = time.monotonic() + 60
    while not least <= free_gpus() <= most:
        assert time.monotonic() < deadline, free_gpus()
        time.sleep(0.1)


def pids(events: list[Event], name: str) -> list[Any]:
    return list(dict.fromkeys(event.placement[name]["pid"] for event in events if isinstance(event, Started)))


def worker_of(pid: int) -> int:
    """The worker of Ray that a student's process goes back to: it has started the server that was forked."""
    for _ in range(2):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert "ray::" in Path(f"/proc/{pid}/cmdline").read_text()
    return pid


def test_each_kind_trains_on_its_own_share_and_a_dead_worker_of_each_is_replaced(
    recipe: Recipe, inject: Inject, make_run: MakeRun, tmp_path: Path
) -> None:
    """Two GPUs suffice, and the weights are those of the sequential reference, bit for bit."""
    killed = tmp_path / "killed"
    inject("coordinator", "gather", 4, "hold", until=killed)
    run, events = make_run(recipe), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Started):
            await_free_gpus(0, 0.01)
        if isinstance(event, CheckpointSaved) and event.step == 3:
            for name in ("large", "y"):
                os.kill(worker_of(pids(events, name)[0]), signal.SIGKILL)
            killed.touch()

    assert driver.launch(run, on_event, threading.Event())
    check(run)
    reserved = "CPU 1, GPU 1 for large; CPU 1, GPU 0.3333 for x, y, z"
    assert Note(f"on Ray, as soon as there is room for all: {reserved}") in events
    trained = {name: len(pids(events, name)) for name in (*SMALL, "large")}
    assert trained == {"x": 1, "y": 2, "z": 1, "large": 2}
    assert read_record(run.folder)["state"] == "finished"
    await_free_gpus(2, 2)


def test_a_cohort_that_waits_for_room_holds_none(recipe: Recipe, make_run: MakeRun) -> None:
    """A request to stop ends its wait, and its turn."""
    taken, stop = placement_group([{"GPU": 1}]), threading.Event()
    assert taken.wait(60)
    await_free_gpus(1, 1)
    notes: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Note) and event.text.startswith("on Ray, as soon as"):
            threading.Timer(3, ask_to_stop).start()

    def ask_to_stop() -> None:
        notes.append(f"{free_gpus():g}")
        stop.set()

    try:
        with pytest.raises(KeyboardInterrupt):
            driver.launch(make_run(recipe), on_event, stop)
    finally:
        remove_placement_group(taken)
    assert notes == ["1"]

    def refuse() -> None:
        raise TimeoutError

    with room.turn(lambda: None), pytest.raises(TimeoutError), room.turn(refuse):
        raise AssertionError("two have their turn")


def test_a_notice_takes_a_checkpoint_and_training_goes_on(
    cluster: Cluster, make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a host that is about to be taken away, while it still can."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")  # Ray Train's own looks as well
    # 2400 steps: the run is stopped long before.
    long = ("students.a.model=nets:Paced", "batch_size=10", "epochs=400", "checkpoint.every_epochs=400")
    there = ("students.a.resources.gpu=0", "students.b.resources.gpu=0", "students.b.accelerator=T4")
    run, events = make_run(make_recipe(*long, *there)), list[Event]()
    stop, drained, saved_one = threading.Event(), threading.Event(), threading.Event()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Stepped) and not drained.is_set():
            drained.set()
            deadline_ms = int((time.time() + 120) * 1000)
            client = GcsClient(address=cluster.address)
            reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            assert client.drain_node(spot.node_id, reason, "a spot host", deadline_ms)[0]
        if isinstance(event, CheckpointSaved):
            saved_one.set()
        if isinstance(event, Stepped) and saved_one.is_set():
            stop.set()

    spot = start_ray(lambda: cluster.add_node(num_cpus=1, labels={ACCELERATOR: "T4"}))
    try:
        driver.launch(run, on_event, stop)
    finally:
        cluster.remove_node(spot)
    (note,) = [
        event.text for event in events if isinstance(event, Note | Warned) and "is to go" in event.text
    ]
    assert note.endswith(": all take a checkpoint")
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert 0 < saved[0] < 2400, "none is due before step 2400"
    assert saved[0] % 6, "in the middle of an epoch"
    assert any(isinstance(e, Stepped) for e in events[events.index(CheckpointSaved(saved[0])) :])
    assert (Path(run.folder.local or "") / f"checkpoints/step-{saved[-1]:08d}/manifest.json").exists()
