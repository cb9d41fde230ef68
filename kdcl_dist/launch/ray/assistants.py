"""The coordinator's assistants as actors, on as many hosts as there are.

An actor does not assist itself: like a worker of Ray Train it starts the process that does, and replaces it.
Ray restarts an actor that dies with its host.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError

from kdcl_dist.errors import KdclError
from kdcl_dist.launch.forkserver import FOR_ASSISTANTS
from kdcl_dist.launch.ray.common import POLL_S, actor_name, at_this_host
from kdcl_dist.launch.ray.private import set_title
from kdcl_dist.launch.ray.worker import ANSWER_S, Supervisor, server_of_worker
from kdcl_dist.run.run import Run

__all__ = ["start_assistants"]


def start_assistants(run: Run) -> list[Any]:
    """Start an actor for each assistant of a run; they wait until the coordination has begun."""
    recipe = run.recipe
    return [
        AssistantActor.options(  # type: ignore[attr-defined]
            num_cpus=0, max_restarts=recipe.failure.allowed, scheduling_strategy="SPREAD"
        ).remote(run.for_coordinator(), index)
        for index in range(len(recipe.workers), len(recipe.members))
    ]


@ray.remote
class AssistantActor:
    """Supervises the process of an assistant from a thread, and answers calls meanwhile.

    Args:
        run: the run.
        index: of the assistant in `run.recipe.members`.
    """

    def __init__(self, run: Run, index: int) -> None:
        self.run, self.index = at_this_host(run), index
        set_title(f"{run.name}/{run.recipe.members[index]}")
        threading.Thread(target=self._assist, name="kdcl-assistant", daemon=True).start()

    def _assist(self) -> None:
        try:
            context = server_of_worker(FOR_ASSISTANTS)  # imports while this process waits for the workers
            Supervisor(self.run, self.index, context, self._begun(), "assist").supervise()
        except (KdclError, RayError, ValueError):  # the coordinator's actor is gone, or failures are too many
            os._exit(1)  # Ray restarts the actor, as long as there is a run

    def _begun(self) -> Any:
        """The coordinator's actor, once the coordination has begun.

        Without a limit, as the coordinator waits for capacity. The actor ends with its driver.
        """
        while True:
            with contextlib.suppress(RayError, ValueError):  # it is not there yet, restarts, or is slow
                actor = ray.get_actor(actor_name(self.run))
                if ray.get(actor.progress.remote(), timeout=ANSWER_S).has_begun:
                    return actor
            time.sleep(POLL_S)
