"""Settings that make a step fast on a GPU, measured with CUDA events.

    python -m benchmarks.gpu --out docs/results/gpu.md

Four tables, each relative to a baseline that alternates with its cases: a student's step by precision,
layout, compiler and optimiser; copies between host and GPU, pinned or not; a step of two students on one GPU
with kdcl relative to the slower one without kdcl; the exchange's bytes over NCCL and gloo, if there are two
GPUs. Without a GPU the command ends with exit code 2; `--device cpu` runs the same lines on the processor.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.device_timer import alternate, milliseconds
from benchmarks.figures import Figure
from benchmarks.gpu_cohort import cohort_and_alone
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.student.dry_run import try_step
from kdcl_dist.student.optimizer import build_optimizer
from kdcl_dist.student.student import Student

__all__ = ["figures", "main"]

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


def steps(nets: tuple[Net, ...], device: torch.device, rounds: int, compiler: bool) -> dict[str, list[float]]:
    """Milliseconds of each variant, by network."""
    found: dict[str, list[float]] = {}
    names = [name for name, variant in VARIANTS.items() if compiler or not variant.get("compile")]
    for net in nets:
        built = [step_of(net, device, VARIANTS[name]) for name in names]
        for name, value in zip(names, alternate(built, device, rounds), strict=True):
            found.setdefault(name, []).append(value)
    return found


def copies(device: torch.device, rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of copies between host and device: from and to plain memory, and pinned memory.

    The figures contain the host's wait for the end of a copy. They leave out another gain of a pinned copy:
    the host need not wait for earlier work on the device.
    """
    shapes = {
        "logits to the host, 128 x 100": (128, 100),
        "logits to the host, 256 x 1000": (256, 1000),
        "images to the device, 128 x 3 x 224 x 224": (128, 3, 224, 224),
    }
    cuda = device.type == "cuda"
    found = {}
    for name, shape in shapes.items():
        on_device = torch.randn(shape, device=device)
        plain, pinned = torch.randn(shape), torch.randn(shape, pin_memory=cuda)
        if "to the host" in name:
            pairs = [partial(_copy, plain, on_device), partial(_copy, pinned, on_device)]
        else:
            pairs = [partial(_copy, on_device, plain), partial(_copy, on_device, pinned)]
        first, second = alternate(pairs, device, rounds, repeats=20)
        found[name] = first, second
    return found


def _copy(to: Tensor, source: Tensor) -> None:
    to.copy_(source, non_blocking=True)


def backends(device: torch.device, rounds: int) -> dict[str, float]:
    """Milliseconds of all_gather and broadcast of 128 x 100 logits among devices, by backend."""
    devices = torch.cuda.device_count() if device.type == "cuda" else 2
    if devices < 2:
        return {}
    found = {}
    for name in ("gloo", "nccl") if device.type == "cuda" else ("gloo",):
        queue = multiprocessing.get_context("spawn").SimpleQueue()
        port = 29_500 + os.getpid() % 1000
        multiprocessing.spawn(_collectives, (devices, name, device.type, port, rounds, queue), nprocs=devices)
        found[name] = queue.get()
    return found


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


def page(device: torch.device, rounds: int, quick: bool, compiler: bool) -> str:
    """All tables with their conditions, as Markdown."""
    nets = QUICK if quick else NETS
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU, on the processor"
    lines = [
        "# On a GPU",
        "",
        f"{name}, {os.cpu_count()} cores, PyTorch {torch.__version__}; {rounds} alternating rounds, medians;",
        f"load average at the start {os.getloadavg()[0]:.1f}. Made by `python -m benchmarks.gpu`.",
        "",
        "| a step, ms | "
        + " | ".join(f"{net.name}, {net.side} px, batch {net.batch}" for net in nets)
        + " |",
        "| --- |" + " ---: |" * len(nets),
    ]
    found = steps(nets, device, rounds, compiler)
    first = next(iter(found.values()))
    for variant, values in found.items():
        cells = (f"{value:.2f} ({value / base:.2f})" for value, base in zip(values, first, strict=True))
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    lines += ["", "In brackets: ratio to fp32.", "", "| a copy | plain ms | pinned ms | ratio |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for what, (plain, pinned) in copies(device, rounds).items():
        lines.append(f"| {what} | {plain:.3f} | {pinned:.3f} | {pinned / plain:.2f} |")
    alone, cohort = cohort_and_alone(device, rounds, quick)
    lines += [
        "",
        f"Two students on one device: a step takes {alone:.2f} ms for the slower one without kdcl, and",
    ]
    lines += [f"{cohort:.2f} ms with kdcl, ratio {cohort / alone:.2f}.", ""]
    exchanged = ", ".join(f"{backend} {value:.3f} ms" for backend, value in backends(device, rounds).items())
    lines += [f"all_gather and broadcast of 128 x 100 logits: {exchanged or 'needs two devices'}."]
    return "\n".join(lines) + "\n"


def figures(quick: bool = False) -> list[Figure]:
    """Lines of the speed table; none without a GPU."""
    if not torch.cuda.is_available():
        return []
    device, net = torch.device("cuda"), QUICK[0] if quick else NETS[0]
    names = ("fp32", "bf16", "bf16, channels_last")
    times = alternate([step_of(net, device, VARIANTS[name]) for name in names], device, 3)
    what = f"{net.name}, batch {net.batch}, step relative to fp32"
    return [
        Figure("gpu", f"{name}: {what}", value / times[0], 1.0)
        for name, value in zip(names[1:], times[1:], strict=True)
    ]


def main() -> None:
    """Measure, print the page, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one small network")
    parser.add_argument("--no-compile", action="store_true", help="skip the variants with the compiler")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: this machine has no GPU that PyTorch can use (--device cpu)", file=sys.stderr)
        raise SystemExit(2)
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # a check that every line runs; its times mean nothing
    text = page(device, arguments.rounds, arguments.quick, not arguments.no_compile)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
