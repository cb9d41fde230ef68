"""Small data, recipes and cohorts for the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compiled import compile_solver

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.assistant import run_assistant
from kdcl_dist.coordinator.runtime import run_coordinator
from kdcl_dist.data.dataset import Info
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.launch import local
from kdcl_dist.membership.rendezvous import RunFailed
from kdcl_dist.membership.tcp_store import host_store
from kdcl_dist.run.events import Event
from kdcl_dist.run.run import Run
from kdcl_dist.student import runtime
from kdcl_dist.student.runtime import run_student

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parent.parent

MakeRecipe = Callable[..., Recipe]
Inject = Callable[..., Path]


def write_images(
    path: Path,
    count: int,
    classes: int = 4,
    seed: int = 0,
    size: int = 8,
    mean: float = 0.5,
    std: float = 0.25,
) -> Path:
    """A learnable data set: each class has a mean image, plus noise; 1 x size x size."""
    rng = np.random.default_rng(7)
    means = rng.integers(60, 200, (classes, 1, size, size))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = (means[labels] + rng.normal(0, 30, (count, 1, size, size))).clip(0, 255).astype(np.uint8)
    info = Info(
        classes=tuple(f"class {c}" for c in range(classes)),
        encoding="raw",
        channels=1,
        shape=(1, size, size),
        mean=(mean,),
        std=(std,),
        source="made by a test",
    )
    write_dataset(
        path, ((int(label), image.tobytes()) for label, image in zip(labels, images, strict=True)), info
    )
    return path


def recipe_text(data: dict[str, str]) -> str:
    """Two small students on small data; a failure ends the run."""
    return f"""
        name: tiny
        epochs: 2
        batch_size: 16
        data: {{train: {data["train"]}, test: {data["test"]}}}
        students:
          - {{name: a, model: cnn_small}}
          - {{name: b, model: mlp, optimizer: {{lr: 0.05}}}}
        failure: {{max_failures: 0}}
        limits: {{startup_s: 200, step_s: 30}}
    """


@dataclass
class Cohort:
    """A whole cohort as threads of this process, over real process groups.

    Only for students without dropout and random views, which draw from the process's generator.
    """

    run: Run
    device: str = "cpu"
    events: list[Event] = field(default_factory=list)
    errors: dict[str, BaseException] = field(default_factory=dict)
    finished: dict[str, bool] = field(default_factory=dict)

    def train(self, stop: Callable[[], bool] = lambda: False) -> Cohort:
        """Run all threads to their end."""
        compile_solver()
        with pytest.MonkeyPatch.context() as patch:
            # Networks draw their initial weights from the generator that all threads share, and a dry run
            # restores its state.
            lock = threading.Lock()

            def one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
                def locked(*arguments: Any) -> Any:
                    with lock:
                        return function(*arguments)

                return locked

            for name in ("_build", "dry_run"):
                patch.setattr(runtime, name, one_at_a_time(getattr(runtime, name)))
            return self._train(stop)

    def _train(self, stop: Callable[[], bool]) -> Cohort:
        store, endpoint = host_store("127.0.0.1")
        jobs: dict[str, Callable[[], bool]] = {
            "coordinator": lambda: run_coordinator(
                self.run, store, host="127.0.0.1", stop=stop, emit=self.events.append
            )
        }
        for rank, worker in enumerate(self.run.recipe.workers):
            jobs[worker.name] = lambda rank=rank: run_student(  # type: ignore[misc]
                self.run,
                rank,
                lambda lost: endpoint,
                host="127.0.0.1",
                device=torch.device(self.device),
                stop=lambda: False,
            )
        for rank in range(len(self.run.recipe.workers), len(self.run.recipe.members)):
            jobs[self.run.recipe.members[rank]] = lambda rank=rank: run_assistant(  # type: ignore[misc]
                self.run, rank, lambda lost: endpoint, host="127.0.0.1"
            )
        threads = [threading.Thread(target=self._work, args=item, name=item[0]) for item in jobs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(1500)
            assert not thread.is_alive(), f"hangs; errors so far: {self.errors}"
        return self

    def _work(self, name: str, job: Callable[[], bool]) -> None:
        try:
            self.finished[name] = job()
        except RunFailed as over:
            self.errors[name] = over.cause
        except BaseException as error:  # as a process would end
            self.errors[name] = error


def weights(folder: Any, step: int, name: str, *entry: str) -> dict[str, torch.Tensor]:
    """A student's network in a checkpoint, or the one in another entry of its part."""
    part = torch.load(f"{folder.local}/checkpoints/step-{step:08d}/{name}.pt", weights_only=True)
    for each in entry:
        part = part[each]
    model: dict[str, torch.Tensor] = part["model"]
    return model


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


def train(run: Run) -> list[Event]:
    """Train in processes of this machine; the events of the run."""
    events: list[Event] = []
    assert local.launch(run, events.append, threading.Event())
    return events
