"""A run on Ray Train: the driver's part, and the start of a worker.

The driver hosts the store through which the workers form their process group. Ray Train's own group is not
used: it binds to the address of the host's name, which can be the loopback.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import LoggingConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from examples.detection.coco import require_pycocotools
from examples.detection.messages import Messages, Unread
from examples.detection.recipe import DetectionRecipe
from examples.detection.run import Run
from examples.detection.training import OnProgress, Worker
from kdcl_dist.errors import KdclError, RecipeError, one_line
from kdcl_dist.exchange.replicas import Replicas, broke_off
from kdcl_dist.launch.ray.private import spare_data_sets
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.tcp_store import connect_store, host_store
from kdcl_dist.run.record import read_record

__all__ = ["cause_of", "cluster", "launch", "placed"]

POLL_S = 0.2
#: Seconds within which the actor of the messages answers, unless its host is gone.
ANSWER_S = 60.0


def launch(run: Run, say: Callable[[str], None], on_progress: OnProgress, asked: threading.Event) -> bool:
    """Train on the connected cluster; False when the run was stopped before its end.

    Args:
        run: prepared.
        say: called with each line for the user.
        on_progress: called with the progress of each task.
        asked: set to ask for a checkpoint and an end after the step.

    Raises:
        RecipeError: the cluster is too small.
        KdclError: the run failed.
    """
    run = replace(run, recipe=placed(run.recipe, say))
    _check_capacity(run.recipe, say)
    store, endpoint = host_store(ray.util.get_node_ip_address())
    messages = Messages.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    config = {"run": run, "messages": messages, "endpoint": endpoint}
    failures: list[BaseException] = []
    thread = threading.Thread(target=_fit, args=(config, failures), name="kdcl-detection", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        with contextlib.suppress(RayError):
            if asked.is_set():
                ray.get(messages.stop.remote(), timeout=ANSWER_S)
            unread: Unread = ray.get(messages.take.remote(), timeout=ANSWER_S)
            for what, (done, total) in unread.progress.items():
                on_progress(what, done, total)
            for line in unread.lines:
                say(line)
    ray.kill(messages)
    del store
    if failures:
        raise cause_of(failures[0])
    return read_record(run.folder).get("state") == "finished"


@contextmanager
def cluster(recipe: DetectionRecipe) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or start one on this machine that ends with the context.

    Does nothing in a connected process. Raises `KdclError` when RAY_ADDRESS does not answer.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=address, **options)
        except ConnectionError:
            raise KdclError(f"the Ray cluster at RAY_ADDRESS={address} does not answer") from None
    else:
        cores = max(os.cpu_count() or 1, recipe.workers * recipe.resources.cpu)
        ray.init(address="local", num_cpus=cores, include_dashboard=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


class OwnGroup(TorchConfig):  # type: ignore[misc]
    """Without Ray Train's process group: the workers form their own on the address that Ray uses."""

    @property
    def backend_cls(self) -> type[Backend]:
        """A backend that does nothing."""
        return Backend  # type: ignore[no-any-return]


def _fit(config: dict[str, Any], failures: list[BaseException]) -> None:
    run: Run = config["run"]
    resources: dict[str, float] = {"CPU": run.recipe.resources.cpu}
    if gpu := run.recipe.resources.gpu_share(auto=0.0):
        resources["GPU"] = gpu
    trainer = TorchTrainer(
        _train,
        train_loop_config=config,
        torch_config=OwnGroup(),
        scaling_config=ScalingConfig(
            num_workers=run.recipe.workers, use_gpu="GPU" in resources, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="ray", storage_path=run.folder.uri, logging_config=LoggingConfig(log_level="ERROR")
        ),
    )
    spare_data_sets(trainer)
    try:
        trainer.fit()
    except BaseException as error:  # handed to the main thread, which raises it
        failures.append(error)


def _train(config: dict[str, Any]) -> None:
    """The main function of a worker."""
    run, messages, rank = config["run"], config["messages"], ray.train.get_context().get_world_rank()
    require_pycocotools()
    torch.set_num_threads(run.recipe.resources.cpu)
    device = torch.device("cuda" if run.recipe.resources.gpu_share(auto=0.0) else "cpu")
    link = _join_group(config["endpoint"], run.recipe, rank, device)
    first = rank == 0
    worker = Worker(
        run,
        link,
        rank,
        device,
        on_progress=lambda *progress: messages.add_progress.remote(*progress) if first else None,
        say=lambda line: messages.add_line.remote(line),
        asked=lambda: bool(ray.get(messages.asked.remote(), timeout=ANSWER_S)),
    )
    try:
        worker.train()
    finally:
        link.close()


def _join_group(endpoint: Endpoint, recipe: DetectionRecipe, rank: int, device: torch.device) -> Replicas:
    """The process group of the workers, formed through the driver's store."""
    limit_s, host = recipe.wait_s, ray.util.get_node_ip_address()
    try:
        store = connect_store(endpoint, limit_s)
    except KdclError as error:
        raise KdclError(
            f"worker {rank} on {host} cannot reach the driver at {endpoint.host}:{endpoint.port} within "
            f"{limit_s:g} s (wait_s)",
            detail=error.message,
        ) from error
    return Replicas(store, rank, recipe.workers, host=host, device=device, limit_s=limit_s)


def placed(recipe: DetectionRecipe, say: Callable[[str], None]) -> DetectionRecipe:
    """The recipe with a number for `resources.gpu: auto`: 1 if each worker can have a GPU, else 0."""
    if recipe.resources.gpu != "auto":
        return recipe
    count = int(ray.cluster_resources().get("GPU", 0))
    if 0 < count < recipe.workers:
        say(f"resources.gpu auto: on the CPU, since {recipe.workers} workers cannot share {count} GPUs")
    gpu = float(count >= recipe.workers)
    return recipe.model_copy(update={"resources": recipe.resources.model_copy(update={"gpu": gpu})})


def _check_capacity(recipe: DetectionRecipe, say: Callable[[str], None]) -> None:
    """Refuse a run that the cluster can never place; say so if it has to wait for resources."""
    if (lack := _lack(recipe, ray.cluster_resources())) is not None:
        raise RecipeError(f"{lack}: lower workers or resources.cpu and resources.gpu")
    if (lack := _lack(recipe, ray.available_resources())) is not None:
        say(f"{lack} free: the run waits until they are")


def _lack(recipe: DetectionRecipe, offered: dict[str, float]) -> str | None:
    for kind, share in (("CPU", recipe.resources.cpu), ("GPU", recipe.resources.gpu_share(auto=0.0))):
        if recipe.workers * share > (there := offered.get(kind, 0)):
            return (
                f"workers: {recipe.workers} workers need {share:g} {kind} each, and the cluster has {there:g}"
            )
    return None


def cause_of(error: BaseException) -> KdclError:
    """The first failure of a run, as far as the failures that followed from it let it be known."""
    failures = dict(getattr(error, "worker_failures", {}))
    for failure in failures.values():
        if isinstance(failure, KdclError):
            return failure
    for rank, failure in failures.items():
        if not broke_off(failure) or len(failures) == 1:
            return KdclError(f"the worker of rank {rank} failed: {one_line(failure)}", detail=str(failure))
    return KdclError(f"Ray Train failed: {one_line(error)}", detail=str(error))
