"""Predictions of the model for cohorts that no machine here can hold; nothing is measured.

    python -m benchmarks.scale_forecast --out docs/results/scale-forecast.md

Every rank has a host of its own. The seconds of a step's exchange are

    rounds * latency + passages * message + volume / bandwidth

with the counts of `kdcl_dist.planning.collective_cost`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.scale import WAYS
from kdcl_dist.exchange.message import HEADER, MessageLayout
from kdcl_dist.planning.collective_cost import Traffic, star, tree

LATENCY_S, MESSAGE_S = 50e-6, 50e-6
#: Gbit/s, and the bytes a second of each.
RATES = {10: 1.25e9, 100: 12.5e9}
BATCH, CLASSES, TOP_K = 256, 1000, 32


class Case(NamedTuple):
    """One line: the workers, and the traffic of a step."""

    what: str
    workers: int
    traffic: Traffic


def _answered(way: str, members: int, message: int, answer: int) -> Traffic:
    gathered, answers = WAYS[way]
    return gathered(members + 1, message) + answers(members + 1, answer)


def _shared(members: int, rows: int, coordinators: int) -> Traffic:
    """The star with several coordinators, each with its share of the samples."""
    ranks, shares = members + coordinators, (each // coordinators for each in (rows, BATCH))
    sizes = [MessageLayout(share, CLASSES).nbytes for share in shares]
    return star(ranks, sizes[0], coordinators) + star(ranks, sizes[1], coordinators)


def _cases(students: int, replicas: int) -> list[Case]:
    """The exchange as built, and alternatives."""
    members, rows = students * replicas, BATCH // replicas
    message, answer = MessageLayout(rows, CLASSES).nbytes, MessageLayout(BATCH, CLASSES).nbytes
    own = MessageLayout(rows, CLASSES).nbytes
    half = [MessageLayout(each, CLASSES, torch.float16).nbytes for each in (rows, BATCH)]
    # A row has its id, its label, K logits and classes of 16 bits each, and the sum of the other classes.
    sparse = [HEADER.itemsize + each * (16 + 4 * TOP_K + 2) for each in (rows, BATCH)]
    wide = MessageLayout(students * BATCH, CLASSES).nbytes
    found = [(way, _answered(way, members, message, answer)) for way in WAYS]
    found += [
        ("star, 16-bit logits", _answered("star", members, *half)),
        (f"star, the {TOP_K} largest logits", _answered("star", members, *sparse)),
        ("star, each its own rows back", star(members + 1, message) + star(members + 1, own)),
        *((f"star, {count} coordinators", _shared(members, rows, count)) for count in (2, 4, 8)),
        ("tree both ways, sums on the way", tree(members + 1, message) + tree(members + 1, answer)),
        ("star, window: epoch", _answered("star", members, message, wide)),
    ]
    return [Case(what, members, traffic) for what, traffic in found]


def _seconds(traffic: Traffic, rate: float) -> float:
    return traffic.rounds * LATENCY_S + traffic.passages * MESSAGE_S + traffic.volume / rate


def main() -> None:
    """Print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# Predictions of the model for large cohorts",
        "",
        f"Arithmetic: {1e6 * LATENCY_S:.0f} us a round, {1e6 * MESSAGE_S:.0f} us a message of the busiest",
        f"rank, one rank a host, B = {BATCH}, C = {CLASSES}. Milliseconds of a step's exchange, without the",
        "ensemble. MB: sent or received by the busiest rank.",
        "Made by `python -m benchmarks.scale_forecast`.",
        "",
        f"| workers | exchange | MB | {' | '.join(f'{rate} Gbit/s' for rate in RATES)} |",
        "| ---: | --- | ---: " + "| ---: " * len(RATES) + "|",
    ]
    for students, replicas in ((8, 1), (64, 1), (125, 8)):
        for what, workers, traffic in _cases(students, replicas):
            times = " | ".join(f"{1e3 * _seconds(traffic, rate):,.1f}" for rate in RATES.values())
            name = f"{workers:,}" if replicas == 1 else f"{workers:,} ({students} x {replicas})"
            lines.append(f"| {name} | {what} | {traffic.volume / 1e6:,.1f} | {times} |")
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
