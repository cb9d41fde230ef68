"""Seconds from the death of a worker to the next common step.

    python -m benchmarks.recovery --out docs/results/recovery.md

Each round measures, each on a Ray of its own: (a) this package, which replaces the dead process and keeps the
others; (b) a plain Ray Train trainer with as many workers of the same networks, which all-gather their logits
each step and save a checkpoint each epoch; Ray Train starts all workers again; (c) this package with the
policy `continue`, until the surviving students take their next step; (d) this package, where Ray's worker
dies and with it the process that it has started; (e) the same with a spare worker, which takes over; (f) this
package without Ray. Every process records the time of each step; SIGKILL ends one process in the middle.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn

from kdcl_dist import models
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.launch import local
from kdcl_dist.launch.ray import driver as on_ray
from kdcl_dist.run.prepare import prepare

NOTES = "KDCL_RECOVERY_NOTES"
STUDENTS, CLASSES, BATCH = ("cnn_medium", "cnn_small"), 10, 64
#: Steps of a worker before it is killed, of 22 in an epoch; and epochs of the run.
KILL_AT, EPOCHS = 60, 200
CASES = {
    "ours": "kdcl_dist on Ray, policy `rollback`: the dead process is replaced",
    "theirs": "plain Ray Train: all workers are started again",
    "continue": "kdcl_dist on Ray, policy `continue`: the next step of the surviving students",
    "worker": "kdcl_dist on Ray, policy `rollback`: Ray's worker dies, and Ray Train replaces it",
    "spare": "the same with `failure.spares: 1`: a spare worker takes over",
    "local": "kdcl_dist, local launcher, `rollback`: the dead process is replaced",
}


class Recording(nn.Module):
    """A network that records the time of each training step."""

    def __init__(self, name: str, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.network = models.build(name, num_classes, in_channels)
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        if self.training and len(x) == BATCH:
            record(self.name)
        logits: torch.Tensor = self.network(x)
        return logits


def medium(num_classes: int, in_channels: int) -> nn.Module:
    """For the recipe."""
    return Recording(STUDENTS[0], num_classes, in_channels)


def small(num_classes: int, in_channels: int) -> nn.Module:
    """For the recipe."""
    return Recording(STUDENTS[1], num_classes, in_channels)


def record(name: str) -> None:
    """Append a line to the shared file: name, process, time."""
    with Path(os.environ[NOTES]).open("a") as file:
        file.write(json.dumps([name, os.getpid(), time.time()]) + "\n")


def worker_of(pid: int) -> int:
    """Process id of the Ray worker whose server has forked a student's process."""
    for _ in range(2):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def recovery_s(
    notes: Path, job: threading.Thread, awaited: str = STUDENTS[1], *, with_worker: bool = False
) -> float:
    """Kill the second student in the middle of a job; seconds to the next step of the awaited one.

    The second record after the kill counts. The first can belong to the step in which the other student died;
    the second shows that all present students have taken a step together.

    Args:
        notes: file in which the job records its steps.
        job: thread that waits for the end of the job.
        awaited: the student whose step counts.
        with_worker: whether to kill the Ray worker that has started the student's process.

    Raises:
        RuntimeError: the job ended first.
    """
    killed_at, victim = 0.0, 0
    while job.is_alive():
        time.sleep(0.02)
        lines = notes.read_text().splitlines() if notes.exists() else []
        found: list[tuple[str, int, float]] = [json.loads(line) for line in lines]
        own = [pid for name, pid, _ in found if name == STUDENTS[1]]
        if not victim and len(own) >= KILL_AT:
            victim, killed_at = own[-1], time.time()
            os.kill(worker_of(victim) if with_worker else victim, signal.SIGKILL)
        after = [at for name, pid, at in found if name == awaited and pid != victim and at > killed_at]
        if victim and len(after) >= 2:
            return after[1] - killed_at
    raise RuntimeError("the job ended before it recovered")


def ours(
    launcher: Any, folder: Path, policy: str = "rollback", *, with_worker: bool = False, spares: int = 0
) -> None:
    """Measure (a), (c), (d), (e) or (f)."""
    students = ", ".join(
        f"{{name: {name}, model: 'benchmarks.recovery:{factory}'}}"
        for name, factory in zip(STUDENTS, ("medium", "small"), strict=True)
    )
    recipe = parse_recipe(f"""
        epochs: {EPOCHS}
        batch_size: {BATCH}
        data: {{train: kdcl:digits-train, test: kdcl:digits-test}}
        students: [{students}]
        failure: {{policy: {policy}, min_students: 1, spares: {spares}}}
    """)
    run = prepare(recipe, str(folder), "run", resume=False, warn=print)
    asked = threading.Event()
    job = threading.Thread(target=lambda: launcher.launch(run, lambda event: None, asked))
    job.start()
    awaited = STUDENTS[policy == "rollback"]
    seconds = recovery_s(Path(os.environ[NOTES]), job, awaited, with_worker=with_worker)
    (folder / "seconds").write_text(str(seconds))
    asked.set()
    job.join()


def theirs(folder: Path) -> None:
    """Measure (b)."""
    trainer = TorchTrainer(
        _loop,
        train_loop_config={"notes": os.environ[NOTES], "stop": str(folder / "stop")},
        scaling_config=ScalingConfig(num_workers=len(STUDENTS), resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="plain", storage_path=str(folder), failure_config=FailureConfig(max_failures=3)
        ),
    )
    job = threading.Thread(target=trainer.fit)
    job.start()
    (folder / "seconds").write_text(str(recovery_s(Path(os.environ[NOTES]), job)))
    (folder / "stop").touch()
    job.join()


def _loop(config: dict[str, str]) -> None:
    """A worker of the plain trainer."""
    os.environ[NOTES] = config["notes"]
    rank = ray.train.get_context().get_world_rank()
    torch.manual_seed(rank)
    network = models.build(STUDENTS[rank], CLASSES, 1).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    if rank == 0 and (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as saved:
            network.load_state_dict(torch.load(Path(saved) / "model.pt", weights_only=True))
    images, labels = torch.randn(BATCH, 1, 8, 8), torch.randint(CLASSES, (BATCH,))
    step = 0
    while not _stops(Path(config["stop"])):
        record(STUDENTS[rank])
        logits = network(images)
        parts = [torch.empty_like(logits) for _ in STUDENTS]
        dist.all_gather(parts, logits.detach())
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(logits, labels))
        optimizer.step()
        step += 1
        if step % 22 == 0:
            with tempfile.TemporaryDirectory() as saved:
                torch.save(network.state_dict(), Path(saved) / "model.pt")
                ray.train.report({}, checkpoint=Checkpoint.from_directory(saved) if rank == 0 else None)


def _stops(file: Path) -> bool:
    """Whether all ranks stop now; a single stopped rank would leave the others in their next collective."""
    asked = torch.tensor(int(file.exists()))
    dist.all_reduce(asked)
    return bool(asked)


def main() -> None:
    """Run all rounds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as notes:
        # One file for all rounds: the server that forks local processes keeps its environment.
        os.environ[NOTES] = f"{notes}/notes"
        found = measured(given.rounds)
    text = _table(found, given.rounds)
    print(text)
    if given.out is not None:
        given.out.write_text(text)


def measured(rounds: int) -> dict[str, list[float]]:
    """Seconds of each case, by round."""
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for name in CASES:
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(_seconds(name, Path(folder)))
            print(number, name, f"{found[name][-1]:.2f} s", flush=True)
    return found


def _seconds(name: str, folder: Path) -> float:
    """Seconds of one case."""
    Path(os.environ[NOTES]).unlink(missing_ok=True)
    if name != "local":
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        if name == "theirs":
            theirs(folder)
        else:
            policy = "continue" if name == "continue" else "rollback"
            launcher, spares = local if name == "local" else on_ray, int(name == "spare")
            ours(launcher, folder, policy, with_worker=name in ("worker", "spare"), spares=spares)
    finally:
        ray.shutdown()
    return float((folder / "seconds").read_text())


def _table(found: dict[str, list[float]], rounds: int) -> str:
    base = median(found["theirs"])
    rows = []
    for name, times in found.items():
        figures = f"{median(times):.2f} | {min(times):.2f} to {max(times):.2f} | {median(times) / base:.2f}"
        rows.append(f"| {CASES[name]} | {figures} |")
    return "\n".join(
        [
            "# From the death of a worker to the next common step",
            "",
            f"Seconds, {rounds} rounds in one run, load average "
            f"{os.getloadavg()[1]:.0f}; two students ({' and '.join(STUDENTS)}), the second "
            f"killed with SIGKILL. {os.cpu_count()} cores, PyTorch {torch.__version__}, Ray "
            f"{ray.__version__}, Python {platform.python_version()}. Made by "
            f"`python -m benchmarks.recovery {' '.join(sys.argv[1:])}`.",
            "",
            "| | median s | range | ratio |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
