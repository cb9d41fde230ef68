"""A host that is about to be taken away: the cohort takes a checkpoint while it still can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
from cohorts import MakeRecipe
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from kdcl_dist.launch.ray import driver as on_ray
from kdcl_dist.run.events import CheckpointSaved, Event, Note, Stepped, Warned
from kdcl_dist.run.run import Run


def test_a_notice_takes_a_checkpoint_and_training_goes_on(
    make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    # 2400 steps: the run is stopped long before.
    recipe = make_recipe(
        "students.a.model=nets:Paced", "batch_size=10", "epochs=400", "checkpoint.every_epochs=400"
    )
    run = make_run(recipe)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False)
        events: list[Event] = []
        stop, drained, saved_one = threading.Event(), threading.Event(), threading.Event()

        def on_event(event: Event) -> None:
            events.append(event)
            if isinstance(event, Stepped) and not drained.is_set():
                drained.set()
                deadline_ms = int((time.time() + 120) * 1000)
                client = GcsClient(address=cluster.address)
                reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
                assert client.drain_node(other.node_id, reason, "a spot host", deadline_ms)[0]
            if isinstance(event, CheckpointSaved):
                saved_one.set()
            if isinstance(event, Stepped) and saved_one.is_set():
                stop.set()

        on_ray.launch(run, on_event, stop)
    finally:
        ray.shutdown()
        cluster.shutdown()
    (note,) = [
        event.text for event in events if isinstance(event, Note | Warned) and "is to go" in event.text
    ]
    assert note.endswith(": all take a checkpoint")
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert 0 < saved[0] < 2400, "none is due before step 2400"
    assert saved[0] % 6, "in the middle of an epoch"
    assert any(isinstance(e, Stepped) for e in events[events.index(CheckpointSaved(saved[0])) :])
    assert (Path(run.folder.local or "") / f"checkpoints/step-{saved[-1]:08d}/manifest.json").exists()
