"""Repeated timed steps: the warm-up does not count, and a time budget ends them."""

from __future__ import annotations

import time

import pytest

from kdcl_dist.planning.processes import STEPS, WARMUP_STEPS, time_steps


def test_results_of_the_warm_up_are_dropped() -> None:
    assert time_steps(lambda number: number) == list(range(WARMUP_STEPS, WARMUP_STEPS + STEPS))


@pytest.mark.parametrize(("step_s", "steps"), [(0.1, STEPS), (1.0, 8), (60.0, 5)])
def test_a_budget_ends_the_steps_but_a_few_always_count(
    step_s: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock advances only by the steps; a budget of 10 s includes the 3 steps of the warm-up."""
    now = [0.0]

    def step(number: int) -> int:
        now[0] += step_s
        return number

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert len(time_steps(step)) == steps
