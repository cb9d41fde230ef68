"""The runs of a table of `kdcl compare` in one process, one after another: the same figures, sooner.

python -m benchmarks.table_in_turn examples/shards/table.yaml --out docs/results/shards.md
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks.in_turn import InTurn
from benchmarks.intervals import difference
from kdcl_dist.compare.experiment import Table, jobs_of, load_table

#: Top-1 in % by arm, student and seed.
Found = dict[str, dict[str, dict[int, float]]]


def main() -> None:
    """Train all runs, and write the table after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = load_table(arguments.table)
    found: Found = {arm.name: defaultdict(dict) for arm in table.arms}
    for job in jobs_of(table, arguments.table.parent):
        for student, values in InTurn(job.recipe).train().items():
            found[job.arm][student][job.seed] = 100 * values["top1"]
        print(job.name, {name: f"{tops[job.seed]:.2f}" for name, tops in found[job.arm].items()}, flush=True)
        if job.arm == table.arms[-1].name:
            arguments.out.write_text(
                f"{head(table, arguments.table, arguments.out)}\n\n{markdown(table, found)}"
            )


def head(table: Table, path: Path, out: Path) -> str:
    """What the table shows, and how it was made."""
    paired = table.baseline and f"; in brackets the gain over `{table.baseline}`, paired by seed"
    return (
        f"# {table.title or table.name}\n\nTest top-1 %, mean over {len(table.seeds)} seeds with the 95% "
        f"interval (Student's t){paired or ''}.\nPyTorch {torch.__version__}, one CPU thread. Made by "
        f"`python -m benchmarks.table_in_turn {path} --out {out}`."
    )


def markdown(table: Table, found: Found) -> str:
    """Mean top-1 in %, and the mean of the paired differences from the baseline with its 95% interval."""
    students = list(found[table.arms[0].name])
    lines = [f"| arm | {' | '.join(students)} |", f"| --- |{' ---: |' * len(students)}"]
    for arm, own in found.items():
        base = None if table.baseline in (None, arm) else found[str(table.baseline)]
        cells = [difference(own[name], None if base is None else base[name]) for name in students]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
