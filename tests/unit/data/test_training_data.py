"""A recipe applied to its data."""

from __future__ import annotations

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.data.training_data import TrainingData


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_one_loader_serves_a_whole_run(workers: int, make_recipe: MakeRecipe) -> None:
    """From any round on: the training steps, the held-out and the test samples, in the schedule's order."""
    crop = [{"name": "RandomCrop", "size": 8, "padding": 1}]
    common = f"data.augment={crop}", "data.holdout_per_class=2", "distillation.method=general"
    training_data = TrainingData.open(make_recipe(*common, f"data.loader_workers={workers}"))
    alone = TrainingData.open(make_recipe(*common))
    schedule = training_data.schedule
    for start in (Round(Kind.TRAIN, 0, 1), Round(Kind.EVALUATE, 0, schedule.steps_per_epoch)):
        steps = alone.training_batches(1, start.step)
        found = training_data.batches(1, start)
        for round in schedule.rounds(start):
            if round.kind not in (Kind.TRAIN, Kind.HOLDOUT, Kind.EVALUATE):
                continue
            if round.part == 0 and round.kind is not Kind.TRAIN:
                passing = alone.holdout_batches() if round.kind is Kind.HOLDOUT else alone.test_batches()
            wanted = next(steps if round.kind is Kind.TRAIN else passing)
            assert all(torch.equal(a, b) for a, b in zip(next(found), wanted, strict=True))
        assert next(found, None) is None
