"""Cost of a step for the coordinator by students and classes: time, and memory beside the messages.

    python -m benchmarks.scale_coordinator --out docs/results/scale-coordinator.md

Each case is a new process with one thread that answers steps of random logits. The time is the thread's
processor time, on which other work of the machine has little effect. The peak is that of the resident memory
during an answer, minus the resident memory with all messages present (Linux only).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from time import thread_time

import torch

from benchmarks.conditions import conditions
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.distillation.solving import set_threads
from kdcl_dist.exchange.message import Contribution
from kdcl_dist.planning.processes import run_in_processes

BATCH, STEPS = 128, 5
METHODS = ("mean", "linear", "general")
STUDENTS, CLASSES = (2, 4, 8, 16, 32, 64), (10, 100, 1000)


def measure(method: str, students: int, classes: int) -> tuple[float, float]:
    """Median seconds of an answer, and bytes of memory at its peak."""
    cohort = ", ".join(f"{{name: s{number}, model: mlp}}" for number in range(students))
    data = "data: {train: x, test: x, holdout_per_class: 1}"
    recipe = f"{data}\nstudents: [{cohort}]\ndistillation: {{method: {method}}}"
    found = run_in_processes(_answer, [(recipe, students, classes)])
    return found[0]


def _answer(text: str, students: int, classes: int) -> tuple[float, float]:
    torch.set_num_threads(1)
    set_threads(1)
    coordinator = Aggregator(parse_recipe(text))
    labels_B = torch.randint(classes, (BATCH,))
    parts = []
    for _ in range(students):
        ids_B = torch.randperm(BATCH)
        parts.append(Contribution(ids_B, labels_B[ids_B], 3 * torch.randn(BATCH, classes)))
    coordinator.answer(
        [Contribution(*(column[:2] for column in parts[0]))] * students, 0
    )  # imports lazy modules
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    coordinator.answer(parts, 0)
    peak, seconds = _resident("VmHWM") - before, []
    for step in range(1, STEPS + 1):
        began = thread_time()
        coordinator.answer(parts, step)
        seconds.append(thread_time() - began)
    return median(seconds), peak


def _resident(field: str) -> float:
    """Bytes of a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return 1024 * float(fields[field].split()[0])


def main() -> None:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# Cost of the coordinator by the size of the cohort",
        "",
        *conditions(
            "scale_coordinator", f"Medians of {STEPS} steps, B = {BATCH}, one thread, processor time"
        ),
        "",
        "Messages: those of all students in a step. Memory: the peak of an answer beside the messages.",
        "",
        "| S | C | messages MB | " + " | ".join(f"{method} ms | MB" for method in METHODS) + " |",
        "| ---: " * (3 + 2 * len(METHODS)) + "|",
    ]
    print("\n".join(lines), flush=True)
    for classes in CLASSES:
        for students in STUDENTS:
            cells = []
            for method in METHODS:
                seconds, peak = measure(method, students, classes)
                cells.append(f"{1e3 * seconds:.2f} | {peak / 1e6:.1f}")
            megabytes = students * BATCH * (4 * classes + 16) / 1e6
            lines.append(f"| {students} | {classes} | {megabytes:.1f} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
