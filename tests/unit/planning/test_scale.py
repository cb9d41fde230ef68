"""The fit of the scale benchmark."""

from __future__ import annotations

import random

import pytest

from benchmarks.scale import Costs, fit, points
from kdcl_dist.planning.collective_cost import Traffic


def known(costs: Costs, noise: float = 0.0) -> list[tuple[Traffic, float]]:
    dice = random.Random(0)
    traffics = [case.traffic for case in points((3, 5, 9, 17), 17) if case.fitted]
    return [(traffic, costs.seconds(traffic) * (1 + dice.uniform(-noise, noise))) for traffic in traffics]


def test_known_costs_are_found_again() -> None:
    costs = Costs(3e-4, 7e-5, 4e-10)
    assert fit(known(costs)) == pytest.approx(costs)


def test_no_cost_is_negative_and_none_nearby_fits_better() -> None:
    timed = known(Costs(0.0, 7e-5, 4e-10), noise=0.3)
    found = fit(timed)
    assert min(found) >= 0

    def loss(costs: Costs) -> float:
        return sum((costs.seconds(traffic) / seconds - 1) ** 2 for traffic, seconds in timed)

    dice = random.Random(1)
    for _ in range(300):
        other = Costs(
            *(
                max(0.0, cost + dice.gauss(0, 1) * step)
                for cost, step in zip(found, (1e-5, 1e-6, 1e-11), strict=True)
            )
        )
        assert loss(found) <= loss(other) + 1e-9
