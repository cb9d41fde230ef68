"""A worker of Ray Train, and the backend by which Ray Train sets all of them up.

The worker does not train itself: it starts a process that does, forked from a server that has imported all
that training needs. When that process dies the next one is there in a fraction of a second, where Ray's new
worker would import for seconds. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError
from ray.train.backend import Backend, BackendConfig

from kdcl_dist.coordinator.recovery_policy import is_fatal
from kdcl_dist.errors import CoordinatorLost, StudentLost, from_dict
from kdcl_dist.launch.devices import assign_accelerators
from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.launch.preflight.placement import ACCELERATOR
from kdcl_dist.launch.processes import Process, finish, how_it_ended, start
from kdcl_dist.launch.ray.common import POLL_S, actor_name, at_this_host
from kdcl_dist.launch.ray.process_title import set_title
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.run import Run

__all__ = ["CohortConfig", "train"]

#: Seconds within which a coordinator answers that is not stopped or cut off.
ANSWER_S = 10.0
#: Seconds in which it learns of a failure and decides.
DECIDE_S = 1.0
#: Seconds in which the coordinator finishes its record, and the driver hears the last of it.
END_S = 20.0


def train(config: dict[str, Any]) -> None:
    """What a worker runs: train one student, or one of its replicas, to the run's end.

    Raises:
        KdclError: the student's failure, where the coordinator did not end the run with it.
    """
    # What Ray runs as its workers' main module is no business of the process that is started from here.
    vars(sys.modules["__main__"]).pop("__file__", None)
    _Worker(at_this_host(config["run"])).train()


class _Worker:
    """Starts the process that trains, again when it dies, and leads it to the coordinator."""

    def __init__(self, run: Run) -> None:
        self.run, self.limit_s = run, run.recipe.limits.startup_s
        self.context = start_server()  # imports while the coordinator is asked
        self.actor = ray.get_actor(actor_name(run))
        rank = ray.train.get_context().get_world_rank()
        self.place: int = ray.get(self.actor.place.remote(rank), timeout=self.limit_s)
        self.worker = run.recipe.workers[self.place]

    def train(self) -> None:
        """See `train` above."""
        for _ in range(1 + self.run.recipe.failure.allowed):
            process = self._start()
            try:
                if self._attend(process):
                    return
                self._note(0)
            finally:
                finish(process)
            if process.error is not None and is_fatal(self.run.recipe.failure, [], process.error):
                break
        if not self._is_over(DECIDE_S):  # else Ray Train must not start this worker again
            raise process.error or StudentLost(
                f"the process of {self.worker.name} died ({how_it_ended(process)})", student=self.worker.name
            )

    def _start(self) -> Process:
        gpu = self.run.recipe.students[self.worker.student].resources.gpu > 0
        host, device = ray.util.get_node_ip_address(), "cuda" if gpu else "cpu"
        endpoint = self._find(None)
        process = start(self.context, self.worker.name, "train", self.run, self.place, endpoint, host, device)
        self._note(process.process.pid or 0)
        return process

    def _attend(self, process: Process) -> bool:
        """Hear a process until its end; whether the run has ended for it, or it has to be replaced."""
        while True:
            wait([process.link, process.process.sentinel])
            try:
                if not process.link.poll():  # it has died, and a process of its own holds the link
                    raise EOFError
                kind, value = process.link.recv()
            except (EOFError, ConnectionResetError):
                process.ended = True
                return False
            if kind in ("finished", "over"):
                process.finished = True
                return True
            if kind == "failed":
                process.error = from_dict(value)
                return False
            if self._is_over(0.0):  # it was away when the run ended
                return True
            with contextlib.suppress(OSError):  # it died meanwhile
                process.link.send(self._find(value))
                self._note(process.process.pid or 0)

    # -- the coordinator ------------------------------------------------------------------------------

    def _find(self, lost: str | None) -> Endpoint:
        """Where the coordinator's store is; if a student has lost that of this id, where the next is.

        An actor whose store is lost, or that does not answer, is made again.

        Raises:
            CoordinatorLost: none answers within limits.startup_s.
        """
        deadline = time.monotonic() + self.limit_s
        patience_s = ANSWER_S + self.place  # one worker is the first to end an actor that hangs
        while time.monotonic() < deadline:
            try:
                endpoint: Endpoint = ray.get(self.actor.endpoint.remote(lost), timeout=patience_s)
                return endpoint
            except GetTimeoutError:
                if lost is not None:
                    ray.kill(self.actor, no_restart=False)
            except RayActorError:  # Ray makes it again
                time.sleep(POLL_S)
        raise CoordinatorLost(f"no coordinator answers within {self.limit_s:g} s (limits.startup_s)")

    def _note(self, pid: int) -> None:
        """Tell the coordinator which process trains here, so that it knows at once when that has died."""
        context = ray.get_runtime_context()
        name, node = self.worker.name, context.get_node_id()
        self._ask(self.actor.note.remote(name, pid, node, context.current_actor))

    def _is_over(self, wait_s: float) -> bool:
        """Whether the coordinator has ended the run, or does so within some seconds."""
        return bool(self._ask(self.actor.is_over.remote(wait_s)))

    def _ask(self, ref: Any) -> Any:
        try:
            return ray.get(ref, timeout=ANSWER_S)
        except (RayError, TimeoutError):
            return None


@dataclass
class CohortConfig(BackendConfig):  # type: ignore[misc]
    """Tells Ray Train to form the cohort instead of a default process group.

    Attributes:
        backend: what TorchTrainer asks for. It gives the name of the process group that there is not.
    """

    run: Run
    backend: str = "gloo"

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend below."""
        return CohortBackend


class CohortBackend(Backend):  # type: ignore[misc]
    """Tells the coordinator which worker trains whom, and lets it end after them.

    With replica groups, of one worker each, Ray Train replaces a worker that died and leaves the others.
    """

    has_replica_groups = True

    def on_start(self, worker_group: Any, backend_config: CohortConfig) -> None:
        """Let the coordinator begin, now that workers are there, and name their processes."""
        run = backend_config.run
        ranks = [worker.distributed_context.world_rank for worker in worker_group.get_workers()]
        if len(ranks) == len(run.recipe.workers):
            wanted = [run.recipe.students[worker.student].accelerator for worker in run.recipe.workers]
            self.places = assign_accelerators(wanted, worker_group.execute(_accelerator))
            self.actor = ray.get_actor(actor_name(run))
        self._begin(run.recipe.limits.startup_s)
        for index, rank in enumerate(ranks):
            name = run.recipe.workers[self.places[rank]].name
            worker_group.execute_single_async(index, set_title, f"{run.name}/{name}")

    def _begin(self, limit_s: float) -> None:
        """Let the coordinator begin; one that has died at the same time is made again."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                ray.get(self.actor.begin.remote(self.places), timeout=limit_s)
                return
            except ActorUnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def on_shutdown(self, worker_group: Any, backend_config: CohortConfig) -> None:
        """Let the coordinator finish its record, and the driver hear the last of it."""
        if len(worker_group) < len(backend_config.run.recipe.workers):
            return  # one worker is replaced
        with contextlib.suppress(RayError, TimeoutError):
            ray.get(self.actor.drain.remote(), timeout=END_S)


def _accelerator() -> str | None:
    labels: dict[str, str] = ray.get_runtime_context().get_node_labels()
    return labels.get(ACCELERATOR)
