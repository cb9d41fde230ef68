"""Parts of `gpu` that need one process: a student's step by its settings, and copies of its data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.device_timer import alternate, milliseconds
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.errors import KdclError, one_line
from kdcl_dist.student.dry_run import try_step
from kdcl_dist.student.optimizer import build_optimizer
from kdcl_dist.student.student import Student

__all__ = ["collectives", "compiled_settings", "copies", "plain_settings", "step_of"]

#: torch's annotations lack its functions that start processes.
multiprocessing: Any = torch.multiprocessing


class Net(NamedTuple):
    """A network with its usual image size, classes and batch."""

    name: str
    side: int
    classes: int
    batch: int


NETS = (Net("resnet18", 224, 1000, 128), Net("resnet50", 224, 1000, 128), Net("wrn_16_2", 32, 100, 128))
QUICK = (Net("cnn_small", 8, 10, 16),)
ROUNDS = 5
#: The first variant is the baseline of the others.
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "fp32, foreach optimiser": {"precision": "fp32", "fused": False},
    "fp32, channels_last": {"precision": "fp32", "channels_last": True},
    "fp32, compile": {"precision": "fp32", "compile": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "bf16, channels_last, compile": {"precision": "bf16", "channels_last": True, "compile": True},
    "fp16": {"precision": "fp16"},
    "fp16, foreach optimiser": {"precision": "fp16", "fused": False},
    "fp16, channels_last": {"precision": "fp16", "channels_last": True},
}


def step_of(net: Net, device: torch.device, variant: Mapping[str, Any]) -> Callable[[], None]:
    """One training step of one student on a fixed batch, with a soft target, without an exchange."""
    fields = {key: value for key, value in variant.items() if key != "fused"}
    recipe = parse_recipe(
        f"batch_size: {net.batch}\ndata: {{train: none, test: none}}\n"
        f"students: [{{name: one, model: {net.name}, resources: {{cpu: {torch.get_num_threads()}}}}}]",
        [f"students.one.{key}={str(value).lower()}" for key, value in fields.items()],
    )
    student = Student(recipe, 0, classes=net.classes, channels=3, device=device)
    student.optimizer = build_optimizer(student.spec.optimizer, student.model, variant.get("fused"))
    images, labels = (
        torch.randn(net.batch, 3, net.side, net.side),
        torch.randint(net.classes, (net.batch,)),
    )
    target = torch.randn(net.batch, net.classes).log_softmax(dim=1)
    try_step(student, images, labels)
    images = images.to(device)  # another table measures copies

    def step() -> None:
        losses = student.loss(student.forward(images, 0), labels, target)
        student.learn(losses.total, 0.01)

    return step


def plain_settings(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Milliseconds of a step by setting, without the compiler."""
    return _settings(device, quick, [name for name, fields in VARIANTS.items() if not fields.get("compile")])


def compiled_settings(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """The same with the compiler, beside the baseline."""
    return _settings(device, quick, ["fp32", *(name for name in VARIANTS if VARIANTS[name].get("compile"))])


def _settings(device: torch.device, quick: bool, names: list[str]) -> Iterator[dict[str, Any]]:
    for net in QUICK if quick else NETS:
        case, built = f"{net.name}, {net.side} px, batch {net.batch}", {}
        for name in names:
            try:
                built[name] = step_of(net, device, VARIANTS[name])
            except KdclError as error:
                yield {"network": case, "setting": name, "ms": one_line(error)}
        times = alternate(list(built.values()), device, 1 if quick else ROUNDS)
        for name, value in zip(built, times, strict=True):
            yield {"network": case, "setting": name, "ms": value, "ratio to fp32": value / times[0]}


def copies(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Milliseconds of copies between host and device: from and to plain memory, and pinned memory.

    The figures contain the host's wait for the end of a copy. They leave out another gain of a pinned copy:
    the host need not wait for earlier work on the device.
    """
    shapes = {
        "logits to the host, 128 x 100": (128, 100),
        "logits to the host, 256 x 1000": (256, 1000),
        "images to the device, 128 x 3 x 224 x 224": (8 if quick else 128, 3, 224, 224),
    }
    cuda = device.type == "cuda"
    for name, shape in shapes.items():
        on_device = torch.randn(shape, device=device)
        plain, pinned = torch.randn(shape), torch.randn(shape, pin_memory=cuda)
        if "to the host" in name:
            pairs = [partial(_copy, plain, on_device), partial(_copy, pinned, on_device)]
        else:
            pairs = [partial(_copy, on_device, plain), partial(_copy, on_device, pinned)]
        first, second = alternate(pairs, device, 1 if quick else ROUNDS, repeats=20)
        yield {"copy": name, "plain ms": first, "pinned ms": second, "ratio": second / first}


def _copy(to: Tensor, source: Tensor) -> None:
    to.copy_(source, non_blocking=True)


def collectives(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Milliseconds of all_gather and broadcast of 128 x 100 logits among devices, by backend."""
    devices = torch.cuda.device_count() if device.type == "cuda" else 2
    if devices < 2:
        return
    for name in ("gloo", "nccl") if device.type == "cuda" else ("gloo",):
        queue = multiprocessing.get_context("spawn").SimpleQueue()
        port, rounds = 29_500 + os.getpid() % 1000, 1 if quick else ROUNDS
        multiprocessing.spawn(_collectives, (devices, name, device.type, port, rounds, queue), nprocs=devices)
        yield {"backend": name, "devices": devices, "ms": queue.get()}


def _collectives(rank: int, size: int, backend: str, kind: str, port: int, rounds: int, queue: Any) -> None:
    """One rank: logits start and end on the device; gloo moves them through pinned memory of the host."""
    torch.set_num_threads(1)
    device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", rank)
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    logits = torch.randn(128, 100, device=device)
    where = device if backend == "nccl" else torch.device("cpu")
    pinned = kind == "cuda" and backend == "gloo"
    buffer = torch.empty(128, 100, device=where, pin_memory=pinned)
    parts = [torch.empty_like(buffer) for _ in range(size)]

    def round_trip() -> None:
        buffer.copy_(logits)
        dist.all_gather(parts, buffer)
        dist.broadcast(buffer, src=size - 1)
        logits.copy_(buffer, non_blocking=True)

    seconds = [milliseconds(round_trip, device, repeats=20) for _ in range(rounds + 1)]
    if rank == 0:
        queue.put(median(seconds[1:]))
    dist.destroy_process_group()
