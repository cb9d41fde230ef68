"""The speed table: every ratio with a goal, measured in one run.

    python -m benchmarks.speed --out docs/results/speed.md

Each line is a ratio to a baseline of the same run, in alternating rounds; the modules describe the method.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import (
    analysis_cost,
    data_loading,
    ensembles,
    exchange,
    memory,
    own_devices,
    scale,
    startup,
    step_efficiency,
)
from benchmarks.conditions import conditions
from benchmarks.figures import Figure

__all__ = ["MODULES"]

#: The modules that measure the lines of the table, in order.
MODULES: Mapping[str, Callable[[bool], list[Figure]]] = {
    "step_efficiency": step_efficiency.figures,
    "own_devices": own_devices.figures,
    "analysis_cost": analysis_cost.figures,
    "exchange": exchange.figures,
    "ensembles": ensembles.figures,
    "data_loading": data_loading.figures,
    "startup": startup.figures,
    "memory": memory.figures,
    "scale": scale.figures,
}


def row(figure: Figure, module: str) -> str:
    """A line of the table."""
    bound = "at least" if figure.at_least else "at most"
    mark = "yes" if figure.reached else "**no**"
    goal = f"{bound} {figure.goal:g}"
    return f"| {figure.line} | {figure.what} | {figure.ratio:.3g} | {goal} | {mark} | `{module}` |"


def main() -> None:
    """Measure all ratios, print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=MODULES, action="append", help="measure only this module")
    parser.add_argument("--quick", action="store_true", help="few rounds of small cases")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, began, load = [], time.monotonic(), os.getloadavg()[0]
    for module in arguments.only or MODULES:
        rows += [row(figure, module) for figure in MODULES[module](arguments.quick)]
        print(f"{module}: done after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    minutes = (time.monotonic() - began) / 60
    took = f"Ratios of alternating rounds in one run of {minutes:.0f} minutes, which began at load {load:.1f}"
    page = [
        "# Speed: every ratio and its goal",
        "",
        *conditions("speed", took),
        "",
        "| part | what | ratio | goal | reached | `python -m benchmarks.` |",
        "| --- | --- | ---: | --- | --- | --- |",
        *rows,
    ]
    print("\n".join(page))
    if arguments.out:
        arguments.out.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
