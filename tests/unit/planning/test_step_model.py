"""The predicted step of a cohort, against times computed by hand."""

from __future__ import annotations

import math

import pytest
from step_models import costs, step_model

from kdcl_dist.exchange.message import HEADER, MessageLayout
from kdcl_dist.planning.step_model import Cost, Link, Prediction, StepModel, StudentCosts, fit_link


def test_the_slowest_student_makes_the_step() -> None:
    found = step_model(costs(0.1), costs(0.02), ensemble_s=0.025).predict([1, 1])
    assert found.step_s == pytest.approx(0.125)
    assert found.busy_s == pytest.approx((0.1, 0.02))
    assert found.idle == pytest.approx([0.2, 0.84])
    assert found.mean_idle == pytest.approx(0.52)


def test_replicas_share_the_batch_and_average_their_gradients() -> None:
    link = Link(latency_s=0.001, bandwidth=1e6)
    # A ring of 4: 6 rounds of 1 ms and 2000 bytes at 1 MB/s.
    assert step_model(costs(0.4, gradient_bytes=8000), link=link).predict([4]).busy_s == pytest.approx(
        [0.1 + 6 * 0.003]
    )
    assert step_model(costs(0.4), link=link).predict([1]).busy_s == pytest.approx([0.4])


def test_idle_counts_every_worker() -> None:
    found = Prediction((3, 1), 1.0, (0.9, 0.5))
    assert found.workers == 4
    assert found.mean_idle == pytest.approx((3 * 0.1 + 0.5) / 4)


@pytest.mark.parametrize("rows", [64, 0, 3 * 64])
def test_the_exchange_is_a_star(rows: int) -> None:
    link = Link(latency_s=0.01, bandwidth=1e5)
    whole = StepModel(64, 10, [costs(1.0), costs(1.0), costs(1.0)], link, 0.0, rows)
    # 4 members: 4 messages to the coordinator, 4 answers. One member has all rows of its student.
    answer = MessageLayout(rows, 10).nbytes if rows else HEADER.itemsize
    volume = 4 * MessageLayout(64, 10).nbytes + 4 * answer
    assert whole.predict([2, 1, 1]).step_s == pytest.approx(1.0 + 0.08 + volume / 1e5)
    halved = 6 * MessageLayout(32, 10).nbytes + 6 * answer
    # Beside them two replicas average their gradients, in two rounds.
    assert whole.predict([2, 2, 2]).step_s == pytest.approx(0.5 + 0.02 + 0.12 + halved / 1e5)


def test_coordinators_share_the_traffic_and_the_cores() -> None:
    link = Link(latency_s=0.01, bandwidth=1e5)
    shared = StepModel(64, 10, [costs(1.0)] * 3, link, 0.5, 64, coordinators=3)
    share = 2 * 3 * MessageLayout(22, 10).nbytes  # the largest of 64 samples' shares, in and out
    expected = 1.0 + 2 * 3 * 0.01 + share / 1e5 + 0.5
    assert shared.predict([1, 1, 1]).step_s == pytest.approx(expected)
    on_two = StepModel(64, 10, [costs(1.0, 0)] * 3, link, 0.5, 64, cores=2, coordinators=3)
    assert on_two.predict([1, 1, 1]).step_s == pytest.approx(expected + 0.25)


def test_a_link_is_found_again_from_two_exchanges() -> None:
    link = Link(latency_s=2e-4, bandwidth=3e8)
    timed = [(size, size, link.exchange_s(4, size, size)) for size in (100, 10**6)]
    found = fit_link(4, timed)
    assert (found.latency_s, found.bandwidth) == pytest.approx((2e-4, 3e8))
    noisy = fit_link(4, [(100, 100, 0.7), (10**6, 10**6, 0.6)])
    assert noisy == Link(pytest.approx(0.7 / 8), math.inf)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("threads", "cores", "expected"),
    [
        ((1, 1), 2, (0.10, 0.02)),
        ((1, 1), 1, (0.12, 0.04)),  # half as fast for 0.04 s, then alone
        ((2, 2), 3, (0.10 + 0.02 / 3, 0.08 / 3)),
        ((0, 1), 1, (0.10, 0.02)),  # the first is on a GPU
        ((3, 0), 2, (0.15, 0.02)),
    ],
)
def test_those_still_busy_share_the_cores(
    threads: tuple[int, int], cores: int, expected: tuple[float, float]
) -> None:
    found = step_model(costs(0.1, threads[0]), costs(0.02, threads[1]), cores=cores).predict([1, 1])
    assert found.busy_s == pytest.approx(expected)


def test_replicas_on_too_few_cores_gain_nothing() -> None:
    alone, shared = costs(0.1), step_model(costs(0.1), cores=1)
    assert shared.predict([2]).step_s == pytest.approx(0.1)
    assert step_model(alone).predict([2]).step_s == pytest.approx(0.05)


def test_costs_lie_on_a_line_between_two_known() -> None:
    one = StudentCosts({32: Cost(0.01, 0.1)}, 1, 0, [1])
    assert one.cost(64) == pytest.approx((0.02, 0.2))
    assert one.cost(8) == pytest.approx((0.0025, 0.025))
    fixed = StudentCosts({32: Cost(0.01, 0.07), 64: Cost(0.02, 0.11), 16: Cost(0.01, 0.06)}, 1, 0, [1])
    assert fixed.cost(64) == (0.02, 0.11)
    assert fixed.cost(48) == pytest.approx((0.015, 0.09))
    assert fixed.cost(128) == pytest.approx((0.04, 0.19))
    assert fixed.cost(8) == pytest.approx((0.01, 0.055))
    assert StudentCosts({32: Cost(0, 0.1), 64: Cost(0, 0.5)}, 1, 0, [1]).cost(8) == (0, 0)
