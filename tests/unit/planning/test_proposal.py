"""The proposed replicas, against a search over all choices."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from step_models import FREE, costs, step_model

from kdcl_dist.errors import RecipeError
from kdcl_dist.planning.proposal import divisors, propose
from kdcl_dist.planning.step_model import Cost, Link, StepModel, StudentCosts


@pytest.mark.parametrize("seed", range(60))
def test_the_proposal_is_the_best_of_all_choices(seed: int) -> None:
    draw = random.Random(seed)
    batch = draw.choice([12, 24, 30, 64])
    size, workers = draw.choice([(1, 9), (2, 12), (3, 9), (4, 8)])
    students = []
    for _ in range(size):
        points = {
            batch // n: Cost(draw.random() / 50, draw.random() / n)
            for n in divisors(batch, draw.choice([1, 4]))
        }
        counts = [n for n in divisors(batch, workers) if n == 1 or draw.random() < 0.9]
        students.append(StudentCosts(points, draw.randint(0, 3), draw.choice([0, 10**6, 10**8]), counts))
    link = draw.choice([FREE, Link(draw.random() / 100, 10 ** draw.uniform(6, 10))])
    whole = StepModel(batch, 100, students, link, 0.001, draw.random() < 0.5, draw.choice([math.inf, 2, 5]))
    choices = itertools.product(*(student.counts for student in students))
    every = [whole.predict(choice) for choice in choices if sum(choice) <= workers]
    assert propose(whole, workers).rank == min(found.rank for found in every)


def test_among_equals_the_fewest_workers() -> None:
    assert propose(step_model(costs(0.1), costs(0.05), costs(0.01)), 12).replicas == (4, 2, 1)
    assert propose(step_model(costs(0.1), costs(0.1), cores=2), 6).replicas == (1, 1)


def test_a_large_cohort_is_planned_at_once() -> None:
    students = [costs(0.01 * (index + 1), gradient_bytes=10**6) for index in range(12)]
    found = propose(step_model(*students, link=Link(1e-4, 1e9)), 64)
    assert found.workers <= 64
    assert found.step_s < 0.035


def test_too_few_workers_are_refused() -> None:
    with pytest.raises(RecipeError, match="--workers: 1 cannot hold 2 students"):
        propose(step_model(costs(1), costs(1)), 1)


def test_shares_that_do_not_fit_need_more_workers() -> None:
    halves = StudentCosts({32: Cost(0.0, 0.1)}, 0, 0, [2, 4])
    assert propose(step_model(halves, costs(0.1)), 3).replicas == (2, 1)
    with pytest.raises(RecipeError, match="--workers: 2 are too few for what fits the devices; 3 are needed"):
        propose(step_model(halves, costs(0.1)), 2)
