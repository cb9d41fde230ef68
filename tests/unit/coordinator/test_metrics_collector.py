"""Losses that explode, the sources of soft targets, and the age of logits against a slow count."""

from __future__ import annotations

import math

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.coordinator.metrics_collector import WARMUP_STEPS, RunningLoss
from kdcl_dist.coordinator.staleness import Staleness, sources_of
from kdcl_dist.exchange.message import Contribution
from kdcl_dist.run.metrics import BINS


def test_a_loss_explodes_once() -> None:
    running = RunningLoss()
    assert [running.explodes(2.0) for _ in range(WARMUP_STEPS)] == [None] * WARMUP_STEPS
    assert running.explodes(19.0) is None
    mean = running.mean
    assert 2.0 < mean < 3.0
    assert running.explodes(10 * mean) == mean
    assert [running.explodes(500.0) for _ in range(WARMUP_STEPS)] == [None] * WARMUP_STEPS


@pytest.mark.parametrize(
    ("usual", "loss", "explodes"), [(1e-4, 0.9, False), (1e-4, 1.1, True), (1, 9, False)]
)
def test_a_tiny_loss_may_grow(usual: float, loss: float, explodes: bool) -> None:
    running = RunningLoss()
    for _ in range(100):
        assert running.explodes(usual) is None
    assert (running.explodes(loss) is not None) is explodes


def test_infinite_losses_explode() -> None:
    running = RunningLoss()
    for _ in range(WARMUP_STEPS):
        running.explodes(1.0)
    assert running.explodes(math.inf) == 1.0


def test_the_running_mean_forgets() -> None:
    running = RunningLoss()
    for _ in range(1000):
        running.explodes(1.0)
    for _ in range(69):
        running.explodes(2.0)
    assert running.mean == pytest.approx(1.5, abs=0.01)


def test_all_peers_or_the_teacher_are_sources(make_recipe: MakeRecipe) -> None:
    assert sources_of(make_recipe()) == [[1], [0]]
    teacher = ("distillation={method: teacher, teacher: b}", "students.b.weights=w")
    assert sources_of(make_recipe(*teacher)) == [[1], []]


def known(ids: list[int], age_SB: list[list[int]]) -> Aligned:
    found = torch.tensor(ids)
    return Aligned(found, found, torch.zeros(len(age_SB), len(ids), 2), torch.tensor(age_SB))


def part(*ids: int) -> Contribution:
    return Contribution(torch.tensor(ids), torch.tensor(ids), torch.zeros(len(ids), 2))


def test_ages_and_coverage_of_a_step() -> None:
    staleness = Staleness([[1, 2], [0, 2], [0, 1]])
    age = [[0, 0, 5, -1], [-1, 2, 0, 0], [4096, -1, -1, -1]]
    staleness.add([part(3, 7), part(11, 9), part()], known([3, 7, 9, 11], age))
    first = staleness.values(0)  # sample 3: ages 4096 of the third; sample 7: 2 of the second
    assert first["coverage"] == 1
    assert first["staleness"] == (4096 + 2) / 2
    assert first["staleness/1-3"] == first["staleness/4096-up"] == 0.5
    second = staleness.values(1)  # sample 9: 5 of the first; sample 11: none
    assert (second["coverage"], second["staleness"], second["staleness/4-15"]) == (0.5, 5, 1)
    assert staleness.values(2) == {}
    staleness.clear()
    assert staleness.values(0) == {}


def test_each_age_counts_in_its_bin() -> None:
    for name in BINS:
        low = int(name.split("-")[0])
        high = 10**6 if name.endswith("up") else int(name.split("-")[-1])
        for age in (low, high):
            staleness = Staleness([[1], [0]])
            staleness.add([part(0), part()], known([0], [[0], [age]]))
            shares = {key: value for key, value in staleness.values(0).items() if "/" in key}
            assert shares == {f"staleness/{other}": float(other == name) for other in BINS}


def test_counts_of_an_unfinished_epoch_come_back() -> None:
    staleness, again = Staleness([[1], [0]]), Staleness([[1], [0]])
    staleness.add([part(0), part()], known([0], [[0], [7]]))
    again.load_state_dict(staleness.state_dict())
    assert again.values(0) == staleness.values(0) != {}
