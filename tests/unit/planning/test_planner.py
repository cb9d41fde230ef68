"""`kdcl plan`: the model of a step, the proposal, what is measured, and the command."""

from __future__ import annotations

import itertools
import math
import os
import random
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from cohorts import ROOT, MakeRecipe

from kdcl_dist.cli import kdcl
from kdcl_dist.errors import ModelError, RecipeError
from kdcl_dist.exchange.message import HEADER, MessageLayout
from kdcl_dist.planning.measure_cores import measure_cores
from kdcl_dist.planning.measure_exchange import measure_ensemble, measure_link
from kdcl_dist.planning.measure_students import measure_student
from kdcl_dist.planning.proposal import divisors, propose
from kdcl_dist.planning.step_model import Cohort, Cost, Figures, Link, Prediction, fit_link

FREE = Link(0.0, math.inf)


def figures(seconds: float, threads: int = 1, gradient_bytes: int = 0, batch: int = 64) -> Figures:
    return Figures({batch: Cost(0.0, seconds)}, threads, gradient_bytes, divisors(batch, 64))


def cohort(*students: Figures, link: Link = FREE, cores: float = math.inf, ensemble_s: float = 0.0) -> Cohort:
    return Cohort(64, 10, students, link, ensemble_s, True, cores)


# -- the model ---------------------------------------------------------------------------------------


def test_the_slowest_student_makes_the_step() -> None:
    found = cohort(figures(0.1), figures(0.02), ensemble_s=0.025).predict([1, 1])
    assert found.step_s == pytest.approx(0.125)
    assert found.busy_s == pytest.approx((0.1, 0.02))
    assert found.idle == pytest.approx([0.2, 0.84])
    assert found.cast_idle == pytest.approx(0.52)


def test_replicas_share_the_batch_and_average_their_gradients() -> None:
    link = Link(latency_s=0.001, bandwidth=1e6)
    # A ring of 4: 6 rounds of 1 ms and 2000 bytes at 1 MB/s.
    assert cohort(figures(0.4, gradient_bytes=8000), link=link).predict([4]).busy_s == pytest.approx(
        [0.1 + 6 * 0.003]
    )
    assert cohort(figures(0.4), link=link).predict([1]).busy_s == pytest.approx([0.4])


def test_idle_counts_every_worker() -> None:
    found = Prediction((3, 1), 1.0, (0.9, 0.5))
    assert found.workers == 4
    assert found.cast_idle == pytest.approx((3 * 0.1 + 0.5) / 4)


@pytest.mark.parametrize("rows", [64, 0, 3 * 64])
def test_the_exchange_is_a_star(rows: int) -> None:
    link = Link(latency_s=0.01, bandwidth=1e5)
    whole = Cohort(64, 10, [figures(1.0), figures(1.0), figures(1.0)], link, 0.0, rows)
    # 4 members: 4 messages to the coordinator, 4 answers. One member has all rows of its student.
    answer = MessageLayout(rows, 10).nbytes if rows else HEADER.itemsize
    volume = 4 * MessageLayout(64, 10).nbytes + 4 * answer
    assert whole.predict([2, 1, 1]).step_s == pytest.approx(1.0 + 0.08 + volume / 1e5)
    halved = 6 * MessageLayout(32, 10).nbytes + 6 * answer
    # Beside them two replicas average their gradients, in two rounds.
    assert whole.predict([2, 2, 2]).step_s == pytest.approx(0.5 + 0.02 + 0.12 + halved / 1e5)


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
    found = cohort(figures(0.1, threads[0]), figures(0.02, threads[1]), cores=cores).predict([1, 1])
    assert found.busy_s == pytest.approx(expected)


def test_replicas_on_too_few_cores_gain_nothing() -> None:
    alone, shared = figures(0.1), cohort(figures(0.1), cores=1)
    assert shared.predict([2]).step_s == pytest.approx(0.1)
    assert cohort(alone).predict([2]).step_s == pytest.approx(0.05)


def test_costs_lie_on_a_line_between_two_known() -> None:
    one = Figures({32: Cost(0.01, 0.1)}, 1, 0, [1])
    assert one.cost(64) == pytest.approx((0.02, 0.2))
    assert one.cost(8) == pytest.approx((0.0025, 0.025))
    fixed = Figures({32: Cost(0.01, 0.07), 64: Cost(0.02, 0.11), 16: Cost(0.01, 0.06)}, 1, 0, [1])
    assert fixed.cost(64) == (0.02, 0.11)
    assert fixed.cost(48) == pytest.approx((0.015, 0.09))
    assert fixed.cost(128) == pytest.approx((0.04, 0.19))
    assert fixed.cost(8) == pytest.approx((0.01, 0.055))
    assert Figures({32: Cost(0, 0.1), 64: Cost(0, 0.5)}, 1, 0, [1]).cost(8) == (0, 0)


# -- the proposal ------------------------------------------------------------------------------------


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
        students.append(Figures(points, draw.randint(0, 3), draw.choice([0, 10**6, 10**8]), counts))
    link = draw.choice([FREE, Link(draw.random() / 100, 10 ** draw.uniform(6, 10))])
    whole = Cohort(batch, 100, students, link, 0.001, draw.random() < 0.5, draw.choice([math.inf, 2, 5]))
    choices = itertools.product(*(student.counts for student in students))
    every = [whole.predict(choice) for choice in choices if sum(choice) <= workers]
    assert propose(whole, workers).rank == min(found.rank for found in every)


def test_among_equals_the_fewest_workers() -> None:
    assert propose(cohort(figures(0.1), figures(0.05), figures(0.01)), 12).replicas == (4, 2, 1)
    assert propose(cohort(figures(0.1), figures(0.1), cores=2), 6).replicas == (1, 1)


def test_a_large_cast_is_planned_at_once() -> None:
    students = [figures(0.01 * (place + 1), gradient_bytes=10**6) for place in range(12)]
    found = propose(cohort(*students, link=Link(1e-4, 1e9)), 64)
    assert found.workers <= 64
    assert found.step_s < 0.035


def test_too_few_workers_are_refused() -> None:
    with pytest.raises(RecipeError, match="--workers: 1 cannot hold 2 students"):
        propose(cohort(figures(1), figures(1)), 1)


def test_shares_that_do_not_fit_need_more_workers() -> None:
    halves = Figures({32: Cost(0.0, 0.1)}, 0, 0, [2, 4])
    assert propose(cohort(halves, figures(0.1)), 3).replicas == (2, 1)
    with pytest.raises(RecipeError, match="--workers: 2 are too few for what fits the devices; 3 are needed"):
        propose(cohort(halves, figures(0.1)), 2)


# -- what is measured --------------------------------------------------------------------------------


def test_a_student_is_measured_at_every_share(make_recipe: MakeRecipe) -> None:
    costs = measure_student(make_recipe("distillation.method=dml"), 0, [1, 4])
    assert costs.keys() == {16, 4}
    assert all(0 < part < 10 for cost in costs.values() for part in cost)


def test_the_frozen_teacher_and_the_shared_parts_are_measured(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    from kdcl_dist import models

    weights = tmp_path / "teacher.pt"
    torch.save(models.build("mlp", 4, 1).state_dict(), weights)
    recipe = make_recipe(
        "distillation={method: teacher, teacher: b}", f"students.b.weights={weights}", "students.a.replicas=2"
    )
    assert 0 < measure_student(recipe, 1, [1])[16].total_s < 10
    assert 0 < measure_ensemble(recipe, 4) < 10
    link = measure_link(recipe)
    assert 0 <= link.latency_s < 10
    assert link.bandwidth > 1e5


def test_the_cores_are_at_most_as_many_as_asked(make_recipe: MakeRecipe) -> None:
    assert 1 <= measure_cores(make_recipe()) <= max(2, os.cpu_count() or 1)


def test_a_missing_gpu_can_be_given(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RecipeError, match="no GPU to measure on; give the step's seconds with --given a=SECONDS"
    ):
        measure_student(make_recipe("students.a.resources.gpu=1"), 0, [1])


# -- the command -------------------------------------------------------------------------------------


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(kdcl, ["plan", str(ROOT / "examples/digits.yaml"), *arguments])


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_network_that_fails_is_told_as_in_training(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ModelError, match="lexikon"):
        measure_student(make_recipe("students.a.model=lexikon"), 0, [1])


GIVEN = ("--given", "large=0.1", "--given", "small=0.02", "--given", "mlp=0.01", "--given", "ensemble=0.005")


def test_given_figures_need_no_measuring() -> None:
    result = plan(*GIVEN, "--workers", "6")
    assert result.exit_code == 0, result.output
    assert result.output == EXPECTED


EXPECTED = """\
digits: batch of 64; nothing measured here, the rest given or default

one worker alone  device  rows  data ms  compute ms
large             1 core    64      0.0       100.0
small             1 core    64      0.0        20.0
mlp               1 core    64      0.0        10.0

as it is: step 105.6 ms, of which exchange and ensemble 5.6 ms; 3 workers, idle 59.0%
student  replicas  rows each  busy ms   idle
large           1         64    100.0   5.3%
small           1         64     20.0  81.1%
mlp             1         64     10.0  90.5%

proposal within 6 workers: step 32.1 ms, of which exchange and ensemble 6.2 ms; 6 workers, idle 30.7%
student  replicas  rows each  busy ms   idle
large           4         16     25.8  19.5%
small           1         64     20.0  37.6%
mlp             1         64     10.0  68.8%

3.29 times as fast: --set students.large.replicas=4
"""


def test_cores_and_a_fixed_part() -> None:
    result = plan(*GIVEN, "--given", "large@32=0.09", "--workers", "6", "--cores", "2")
    assert result.exit_code == 0, result.output
    assert "they ask for 3 threads and share 2 cores" in result.output
    assert "none is better" in result.output


def test_a_given_link() -> None:
    result = plan(*GIVEN, "--link", "0.01:1e12")  # 3 messages and 3 answers
    assert "step 165.0 ms, of which exchange and ensemble 65.0 ms" in result.output


def test_data_elsewhere() -> None:
    result = plan(*GIVEN, "--set", "data.train=/elsewhere/train.arrow")
    assert result.exit_code == 0, result.output
    assert "data.train cannot be opened here: 1000 classes are assumed" in result.output


def test_the_rest_is_measured(make_recipe: MakeRecipe) -> None:
    result = plan(*GIVEN[2:], "--set", "students.large.model=cnn_small", "--set", "batch_size=16")
    assert result.exit_code == 0, result.output
    assert "large measured on this machine, the rest given or default" in result.output
    assert "measuring large" in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--given", "huge=1"], "no student is named 'huge' (have large, small, mlp)"),
        (["--given", "large"], "NAME=SECONDS or NAME@ROWS=SECONDS is needed"),
        (["--given", "large=-1"], "'-1' is not a positive number of seconds"),
        (["--given", "large=nan"], "'nan' is not a positive number of seconds"),
        (["--given", "large=soon"], "'soon' is not a positive number of seconds"),
        (["--given", "large@0=1"], "'0' is not a number of samples from 1"),
        (["--given", "large@1.5=1"], "'1.5' is not a number of samples from 1"),
        ([*GIVEN, "--link", "fast"], "--link 'fast': SECONDS:BYTES is needed, latency and bytes a second"),
        ([*GIVEN, "--link", "0.1:0"], "SECONDS:BYTES is needed"),
        (["--workers", "2"], "--workers: 2 cannot hold 3 students; each needs one"),
        (["--workers", "-1"], "--workers: -1 cannot hold 3 students; each needs one"),
        (["--set", "batchsize=3"], "batchsize"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], expected: str) -> None:
    result = plan(*arguments)
    assert result.exit_code == 2
    assert expected in result.output
    assert result.output.startswith("kdcl: error: ")
    assert len(result.output.splitlines()) == 1
