"""Cost of splitting the batch: two forward passes over halves relative to one over the whole.

    python -m benchmarks.split_forward

The exchange of one half could overlap with the forward pass of the other half. That saves at most half of an
exchange, at the cost that this benchmark measures. It also changes every network with batch norm, whose
statistics become those of half a batch. For these reasons kdcl does not split batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.conditions import conditions
from kdcl_dist import models
from kdcl_dist.utils.process import keep_freed_memory

#: Network, classes, batch, shape of an image.
CASES = (
    ("cnn_medium", 10, 64, (1, 8, 8)),
    ("cnn_large", 10, 192, (1, 8, 8)),
    ("resnet20", 100, 128, (3, 32, 32)),
)
ROUNDS = 15


def measure(name: str, classes: int, batch: int, shape_CHW: tuple[int, int, int]) -> tuple[float, float]:
    """Median seconds of a forward pass over the whole batch, and of two over its halves, in alternation."""
    network = models.build(name, classes, shape_CHW[0]).train()
    images_BCHW = torch.randn(batch, *shape_CHW)
    halves = images_BCHW.chunk(2)
    ways: tuple[Callable[[], object], ...] = (
        lambda: network(images_BCHW),
        lambda: [network(half) for half in halves],
    )
    found: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for times, way in zip(found, ways, strict=True):
            began = time.perf_counter()
            way()
            times.append(time.perf_counter() - began)
    whole, split = (median(times[2:]) for times in found)
    return whole, split


def main() -> None:
    """Measure all networks and print the table."""
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for name, classes, batch, shape in CASES:
        whole, split = measure(name, classes, batch, shape)
        rows.append(f"| {name} | {batch} | {1e3 * whole:.1f} | {1e3 * split:.1f} | {split / whole:.2f} |")
    how = f"{ROUNDS} alternating rounds, medians, one thread"
    print(
        "\n".join(
            [*conditions("split_forward", how), "", "| network | batch | whole ms | halves ms | ratio |"]
        )
    )
    print("\n".join(["| --- " + "| ---: " * 4 + "|", *rows]))


if __name__ == "__main__":
    main()
