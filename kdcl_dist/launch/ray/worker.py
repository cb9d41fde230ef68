"""A worker of Ray Train, and the backend with which Ray Train sets all of them up.

The worker does not train itself. It starts a process that trains, forked from a server that has imported all
that training needs. When that process dies, the next one is there in a fraction of a second, where a new
worker of Ray would import for seconds. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError
from ray.train.backend import Backend, BackendConfig

from kdcl_dist.coordinator.recovery_policy import is_fatal
from kdcl_dist.errors import CoordinatorLost, KdclError
from kdcl_dist.launch.devices import assign_accelerators
from kdcl_dist.launch.failures import failure_of
from kdcl_dist.launch.forkserver import FOR_STUDENTS, start_server
from kdcl_dist.launch.messages import CoordinatorUnreachable, Failed, Finished, RunEndedByFailure
from kdcl_dist.launch.preflight.placement import ACCELERATOR, Need
from kdcl_dist.launch.processes import Process, await_ready, finish, receive, start
from kdcl_dist.launch.ray.common import POLL_S, actor_name, at_this_host
from kdcl_dist.launch.ray.coordinator import Whereabouts
from kdcl_dist.launch.ray.private import set_title
from kdcl_dist.launch.ray.spares import Place, await_student, students_first
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.run.process_log import ProcessLog
from kdcl_dist.run.run import Run

__all__ = ["ANSWER_S", "CohortConfig", "Supervisor", "server_of_worker", "train"]

#: Seconds within which a coordinator answers, unless it is stopped or cut off.
ANSWER_S = 10.0
#: Seconds in which the coordinator learns of a failure and decides.
DECIDE_S = 1.0
#: The assignment of this worker's kind; the coordinator's actor may die before it is asked for it.
_assigned: list[int | None] = []


def train(config: dict[str, Any]) -> None:
    """What a worker runs: train one student, or one of its replicas, to the run's end; a spare waits for one.

    Args:
        config: the run, under "run", the device of each of the cohort's workers, under "devices", and the
            number of this worker's kind, under "kind".

    Raises:
        KdclError: the student's failure, where the coordinator did not end the run with it.
    """
    run, devices = at_this_host(config["run"]), config["devices"]
    context = server_of_worker()  # imports while this process waits for the coordinator
    actor = ray.get_actor(actor_name(run))
    place = config["kind"], ray.train.get_context().get_world_rank()
    if run.recipe.failure.spares:
        set_title(f"{run.name}/spare")
    limit_s = run.recipe.limits.startup_s + ANSWER_S
    found = await_student(actor, place, _accelerator(), _assigned, limit_s)
    if found.index is not None and not found.is_over:
        set_title(f"{run.name}/{run.recipe.workers[found.index].name}")
        more = devices[found.index], found.took_over
        Supervisor(run, found.index, context, actor, "train", *more, place=place).supervise()


def _remember(assignment: Sequence[int | None]) -> None:
    """Runs in a worker of Ray, before `train`."""
    _assigned[:] = assignment


def server_of_worker(modules: Sequence[str] = FOR_STUDENTS) -> Any:
    """The context of the server that forks the processes of this worker of Ray; see `start_server`.

    What it forks must not import the file that Ray runs as the main module of its workers.
    """
    vars(sys.modules["__main__"]).pop("__file__", None)
    return start_server(modules)


class Supervisor:
    """Starts the process of a member, replaces it when it dies, and connects it to the coordinator.

    Args:
        run: the run.
        index: of the member in `run.recipe.members`.
        context: of the server that forks the process.
        actor: the coordinator's.
        job: the function of `kdcl_dist.launch.entrypoints` that the process runs.
        more: the function's last arguments.
        place: of the worker; None for one that Ray Train has not started.
    """

    def __init__(
        self,
        run: Run,
        index: int,
        context: Any,
        actor: Any,
        job: str,
        *more: str,
        place: Place | None = None,
    ) -> None:
        self.run, self.limit_s, self.place = run, run.recipe.limits.startup_s, place
        self.index, self.name, self.context, self.actor = index, run.recipe.members[index], context, actor
        self.entry, self.more = f"kdcl_dist.launch.entrypoints:{job}", more
        self.log = ProcessLog(run.folder, self.name)

    def supervise(self) -> None:
        """Keep a process at work to the run's end.

        Raises:
            KdclError: the member's failure, where the coordinator did not end the run with it.
        """
        try:
            self._supervise_all()
        finally:
            self.log.close()

    def supervise_one(self) -> KdclError | None:
        """Start one process: how it failed; None once its work is done, or where the run is over.

        Raises:
            CoordinatorLost: no coordinator answers within limits.startup_s.
        """
        try:
            failed = self._supervise_one()
        finally:
            self.log.close()
        return None if failed is None else failure_of(failed)

    def _supervise_all(self) -> None:
        failure, failed = self.run.recipe.failure, self._supervise_one()
        for _ in range(failure.allowed):
            if failed is None or (failed.error is not None and is_fatal(failure, [], failed.error)):
                break
            failed = self._supervise_one()
        # At the run's end Ray Train must not start this worker again.
        if failed is not None and not self._ends(error := failure_of(failed)):
            raise error

    def _supervise_one(self) -> Process | None:
        """Keep one process at work; returns it if it has failed."""
        if (endpoint := self._find_endpoint(None)) is None:
            return None
        process = self._start(endpoint)
        try:
            if self._supervise(process):
                return None
            self._register(0)
        finally:
            finish(process)
        return process

    def _start(self, endpoint: Endpoint) -> Process:
        arguments = (self.run, self.index, endpoint, ray.util.get_node_ip_address(), *self.more)
        process = start(self.context, self.name, self.entry, *arguments, limit_s=self.limit_s, log=self.log)
        self._register(process.handle.pid or 0)
        return process

    def _supervise(self, process: Process) -> bool:
        """Handle a process's messages to its end; False if the process has to be replaced."""
        while True:
            self._await_message(process)
            match receive(process):
                case Finished() | RunEndedByFailure():
                    return True
                case Failed() | None:
                    return False
                case CoordinatorUnreachable(endpoint_id):
                    if (endpoint := self._find_endpoint(endpoint_id)) is None:
                        return True  # the process missed the run's end
                    with contextlib.suppress(OSError):  # the process died meanwhile
                        process.link.send(endpoint)
                        self._register(process.handle.pid or 0)

    def _await_message(self, process: Process) -> None:
        """Wait for a message, or the process's end, as long as there is a coordinator that ends what hangs.

        Raises:
            CoordinatorLost: none has answered for limits.startup_s.
        """
        answered_at = time.monotonic()
        while not await_ready([process], ANSWER_S):
            if self._ask(self.actor.is_over.remote(0.0)) is not None:
                answered_at = time.monotonic()
            elif time.monotonic() - answered_at > self.limit_s:
                raise self._no_coordinator()

    # -- the coordinator ------------------------------------------------------------------------------

    def _find_endpoint(self, lost: str | None) -> Endpoint | None:
        """Where the coordinator's store listens; None where the run is over.

        Args:
            lost: the id of an endpoint that is lost: that of the next coordinator is found. An actor that
                does not answer is ended, and Ray restarts it.

        Raises:
            CoordinatorLost: no coordinator answers within limits.startup_s.
        """
        deadline = time.monotonic() + self.limit_s
        patience_s = ANSWER_S + self.index  # one worker is the first to end an actor that hangs
        while time.monotonic() < deadline:
            try:
                found: Whereabouts = ray.get(self.actor.find.remote(lost), timeout=patience_s)
            except GetTimeoutError:
                if lost is not None:
                    ray.kill(self.actor, no_restart=False)
            except RayActorError:  # Ray restarts it
                time.sleep(POLL_S)
            else:
                if found.is_over or found.endpoint is not None:
                    return found.endpoint
        raise self._no_coordinator()

    def _no_coordinator(self) -> CoordinatorLost:
        return CoordinatorLost(f"no coordinator answers within {self.limit_s:g} s (limits.startup_s)")

    def _register(self, pid: int) -> None:
        """Register the process that trains here: the coordinator then notices at once when it dies."""
        context = ray.get_runtime_context()
        name, node = self.name, context.get_node_id()
        self._ask(self.actor.register_process.remote(name, pid, node, context.current_actor, self.place))

    def _ends(self, failure: KdclError) -> bool:
        """Whether the run ends, soon, with the failure of a member that is not replaced here."""
        stops = self._ask(self.actor.give_up.remote(self.name, failure.to_dict()))
        deadline = time.monotonic() + (self.limit_s if stops else DECIDE_S)
        while not self._is_over(DECIDE_S):
            if time.monotonic() > deadline:
                return False
        return True

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
    """Lets Ray Train form the cohort, or the workers of one kind, instead of a default process group.

    Attributes:
        run: the run.
        kind: the number of the kind.
        workers: the indices in `needs` of the workers of this kind.
        needs: of the cohort's workers, and then of its spares.
        backend: the name of a process group's backend, which TorchTrainer asks for; no such group is formed.
    """

    run: Run
    kind: int
    workers: Sequence[int]
    needs: Sequence[Need]
    backend: str = "gloo"

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend below."""
        return CohortBackend


class CohortBackend(Backend):  # type: ignore[misc]
    """Assigns students to workers, and lets the coordinator begin with the last kind of workers.

    With replica groups, of one worker each, Ray Train replaces a worker that died and leaves the others.
    """

    has_replica_groups = True

    def on_start(self, worker_group: Any, backend_config: CohortConfig) -> None:
        """Tell the coordinator that the workers are there."""
        run = backend_config.run
        anew = len(worker_group.get_workers()) == len(backend_config.workers)
        if anew:
            self.assignment = _assignment(worker_group, backend_config)
            self.actor = ray.get_actor(actor_name(run))
        worker_group.execute(_remember, self.assignment)
        self._begin(backend_config.kind, anew, run.recipe.limits.startup_s)

    def _begin(self, kind: int, anew: bool, limit_s: float) -> None:
        """Let the coordinator begin; one that has died meanwhile is awaited until Ray has restarted it."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                ray.get(self.actor.begin.remote(kind, self.assignment, anew), timeout=limit_s)
                return
            except ActorUnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)


def _assignment(worker_group: Any, config: CohortConfig) -> list[int | None]:
    """For each rank the index of its student, or replica, in the cohort; None for a spare."""
    needs = [config.needs[index] for index in config.workers]
    offered, ranks = worker_group.execute(_accelerator), list(range(len(needs)))
    if any(need.is_spare for need in needs):
        ranks = students_first([worker.metadata.node_id for worker in worker_group.get_workers()])
    found: list[int | None] = [None] * len(needs)
    positions = assign_accelerators(needs, [offered[rank] for rank in ranks])
    for rank, position in zip(ranks, positions, strict=True):
        found[rank] = None if needs[position].is_spare else config.workers[position]
    return found


def _accelerator() -> str | None:
    labels: dict[str, str] = ray.get_runtime_context().get_node_labels()
    return labels.get(ACCELERATOR)
