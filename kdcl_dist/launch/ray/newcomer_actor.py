"""The actor of a worker that joins while the others train; see `newcomers`. It imports what a worker does."""

from __future__ import annotations

from typing import Any

import ray

from kdcl_dist.errors import KdclError
from kdcl_dist.launch.ray.common import actor_name, at_this_host
from kdcl_dist.launch.ray.private import set_title
from kdcl_dist.launch.ray.worker import Supervisor, server_of_worker
from kdcl_dist.run.run import Run

__all__ = ["NewcomerActor"]


@ray.remote
class NewcomerActor:
    """A worker's processes, one after another; answers other calls meanwhile.

    Args:
        run: the run.
        rank: of the worker in `run.recipe.workers`.
        device: the name of a torch device, or "auto".
    """

    def __init__(self, run: Run, rank: int, device: str) -> None:
        self.run, self.rank, self.device = at_this_host(run), rank, device
        self.context = server_of_worker()  # imports while the actor is asked to train
        set_title(f"{run.name}/{run.recipe.workers[rank].name}")

    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]  # by the next actor, if this one dies
    def train(self) -> dict[str, Any] | None:
        """Train with a process to the end of the run, or of its student; returns how it failed, if it did."""
        try:
            coordinator = ray.get_actor(actor_name(self.run))
            supervisor = Supervisor(self.run, self.rank, self.context, coordinator, "train", self.device)
            failed = supervisor.supervise_one()
        except KdclError as error:
            failed = error
        return None if failed is None else failed.to_dict()
