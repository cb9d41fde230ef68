"""Two students that share one device: as a cohort, and as independent processes."""

from __future__ import annotations

from statistics import median

import torch

from benchmarks.step_efficiency import alone as alone_s
from benchmarks.step_efficiency import together
from kdcl_dist.config.recipe_file import load_recipe

__all__ = ["cohort_and_alone"]


def cohort_and_alone(device: torch.device, rounds: int, quick: bool) -> tuple[float, float]:
    """Median milliseconds of a step of the slower student without kdcl, and of the cohort, in alternation."""
    share = 0.5 if device.type == "cuda" else 0.0
    model, epochs = ("cnn_small", 1) if quick else ("cnn_large", 4)
    students = ", ".join(
        f"{{name: {name}, model: {model}, resources: {{gpu: {share}}}}}" for name in ("one", "two")
    )
    overrides = [f"students=[{students}]", "data.augment=[]", f"epochs={epochs}"]
    recipe = load_recipe("examples/digits.yaml", overrides)
    found = [(alone_s(recipe, device.type), together(recipe)) for _ in range(1 if quick else rounds)]
    alone, cohort = (1000 * median(column) for column in zip(*found, strict=True))
    return alone, cohort
