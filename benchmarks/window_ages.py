"""Age of the peers' logits for each window, and share of the samples with a soft target.

    python -m benchmarks.window_ages --out docs/results/window-ages.md

Both follow from the order of the samples alone, without training: two students, the digits, 20 epochs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy import OVERRIDES, RECIPE
from benchmarks.window_accuracy import STUDY
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.coordinator.logit_bank import LogitBank
from kdcl_dist.coordinator.staleness import Staleness
from kdcl_dist.data.sampling import epoch_steps, own_steps, student_seed
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.exchange.message import Contribution
from kdcl_dist.run.metrics import BINS


def ages(recipe: Recipe) -> list[dict[str, float]]:
    """The figures of the first student: those of the first epoch, and those of all other epochs."""
    training_data, window = TrainingData.open(recipe), recipe.distillation.window
    per_epoch, students = training_data.schedule.steps_per_epoch, len(recipe.students)
    seeds = [student_seed(recipe.seed, index, None) for index in range(students)]
    bank = LogitBank(students, len(training_data.train), 1, max_staleness=recipe.distillation.max_staleness)
    peers = [[j for j in range(students) if j != i] for i in range(students)]
    first, others = Staleness(peers), Staleness(peers)
    for epoch in range(recipe.epochs):
        steps_TB = epoch_steps(training_data.split[0], recipe.batch_size, recipe.seed, epoch)
        width = per_epoch if window == "epoch" else window
        orders = [list(own_steps(steps_TB, width, seed, epoch)) for seed in seeds]
        for step in range(per_epoch):
            ids = [torch.from_numpy(np.ascontiguousarray(order[step])) for order in orders]
            (others if epoch else first).add(*_step(bank, ids, epoch * per_epoch + step))
    return [first.values(0), others.values(0)]


def _step(bank: LogitBank, ids: list[torch.Tensor], step: int) -> tuple[list[Contribution], Aligned]:
    """The contributions of a step and the aligned logits; the values of the logits have no effect here."""
    parts = [Contribution(own, torch.zeros_like(own), torch.zeros(len(own), 1)) for own in ids]
    for student, part in enumerate(parts):
        bank.put(student, part.ids, part.logits, step)
    together = torch.unique(torch.cat(ids))
    logits, age = bank.latest(together, step)
    return parts, Aligned(together, torch.zeros_like(together), logits, age)


def main() -> None:
    """Compute all windows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = {
        name: ages(load_recipe(RECIPE, [*OVERRIDES, *overrides]))
        for name, overrides in STUDY.arms.items()
        if "distillation.method=none" not in overrides
    }
    bins = [b for b in BINS if any(part.get(f"staleness/{b}") for both in found.values() for part in both)]
    lines = [
        "# Age of the peers' logits",
        "",
        "Digits, two students, 22 steps of 64 samples an epoch, 20 epochs. Coverage: share of samples with a",
        "soft target. Mean age of the peer's logits in steps, and share of the logits by age.",
        "Made by `python -m benchmarks.window_ages`.",
        "",
        "| window | epochs | coverage | mean age | " + " | ".join(bins) + " |",
        "| --- | --- | ---: | ---: |" + " ---: |" * len(bins),
    ]
    for name, both in found.items():
        for epochs, values in zip(("first", "others"), both, strict=True):
            shares = " | ".join(f"{values.get(f'staleness/{b}', 0):.0%}" for b in bins)
            figures = f"{values['coverage']:.0%} | {values.get('staleness', 0):.1f}"
            lines.append(f"| {name} | {epochs} | {figures} | {shares} |")
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
