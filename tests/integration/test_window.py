"""Students that order the data in different orders: the same weights as a slow sequential reference."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from cohorts import Cohort, Inject, MakeRecipe, assert_same
from equality import PAIR, VIEWS, check, check_replicas, recipe_for, students_of

from benchmarks.in_turn import InTurn
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.rounds import RunSchedule
from kdcl_dist.coordinator import logit_bank
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.logit_bank import make_bank
from kdcl_dist.coordinator.window_check import WindowCheck, make_window_check
from kdcl_dist.data import sampling
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.losses import distillation_loss
from kdcl_dist.distillation.soft_target import log_soft_target
from kdcl_dist.errors import KdclError, LabelMismatch, MisalignedIds, RecipeError
from kdcl_dist.exchange.layout import answer_rows
from kdcl_dist.exchange.message import Contribution
from kdcl_dist.launch import local
from kdcl_dist.planning.measure_exchange import _ensemble
from kdcl_dist.report.page import page
from kdcl_dist.report.run_data import load
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]
METHODS = ("none", "naive", "linear", "min_logit", "general", "mean", "teacher")
#: 60 samples, 8 steps an epoch (7 with samples held out): windows of 4 and what is left.
SMALL = ("batch_size=7", "epochs=3")
#: Three students with samples of their own: of 6 steps of an epoch, one needs 5 for a pass and one needs 4.
OWN_SAMPLES = (
    "distillation.window=epoch",
    "students=[{name: a, model: cnn_small, optimizer: {lr: 0.02}, data: {share: [0, 0.6]}}, "
    "{name: b, model: mlp, optimizer: {lr: 0.05}, data: {classes: [class 0, class 2, class 3]}}, "
    "{name: c, model: mlp, optimizer: {lr: 0.02}, data: {share: 0.5}}]",
)


# -- the order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 8, 20])
def test_each_student_takes_the_same_samples_in_its_own_order(width: int) -> None:
    steps_TB = sampling.epoch_steps(np.arange(100, 160), 7, seed=3, epoch=2)
    orders = [np.stack(list(sampling.own_steps(steps_TB, width, student, 2))) for student in (5, 6)]
    for first in range(0, len(steps_TB), width):
        shared = np.sort(steps_TB[first : first + width].ravel())
        for order in orders:
            assert order.shape == steps_TB.shape
            assert np.array_equal(np.sort(order[first : first + width].ravel()), shared)
    assert not np.array_equal(*orders)
    if width > 1:
        assert not np.array_equal(*(np.sort(order, axis=1) for order in orders)), "not only within a step"
    for start in range(len(steps_TB)):
        rest = list(sampling.own_steps(steps_TB, width, 5, 2, start))
        assert np.array_equal(np.stack(rest), orders[0][start:])


def test_a_window_ends_with_its_epoch(make_recipe: MakeRecipe) -> None:
    epoch, wide = (
        [
            batch.ids.tolist()
            for batch in TrainingData.open(make_recipe(f"distillation.window={w}")).training_batches(0, 0)
        ]
        for w in ("epoch", 1000)
    )
    assert epoch == wide
    assert len(epoch) == 6


# -- the result ----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [4, "epoch"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_reference(
    method: str, window: int | str, make_recipe: MakeRecipe, make_run: MakeRun, tmp_path: Path
) -> None:
    more = [*SMALL, f"distillation.window={window}"]
    run = make_run(recipe_for(method, make_recipe, tmp_path, *more))
    assert not Cohort(run).train().errors
    check(run)


@pytest.mark.parametrize(
    "override",
    [
        "distillation.max_staleness=0",
        "distillation.max_staleness=5",
        "distillation.invariant=false",
        "distillation.logit_noise=0.3",
        "distillation.weight=0.25",
        "students.b.epochs=1",
    ],
)
def test_equals_the_reference_with(override: str, make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    run = make_run(make_recipe(*SMALL, "distillation.window=4", override))
    assert not Cohort(run).train().errors
    check(run)


def test_processes_equal_the_reference(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    cohort = "students=" + str(students_of(make_recipe))
    run = make_run(make_recipe(*SMALL, cohort, VIEWS, "distillation.window=4"))
    assert local.launch(run, lambda event: None, threading.Event())
    check(run)


def test_in_turn_equals_the_reference(make_recipe: MakeRecipe) -> None:
    """The benchmark's loop, by which the figures of docs/results/windows.md were made."""
    recipe = make_recipe(*SMALL, "distillation.window=4")
    loop = InTurn(recipe)
    loop.train()
    for student, state in zip(loop.students, reference.train(recipe), strict=True):
        assert_same(student.model.state_dict(), state)


def test_replicas(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    run = make_run(make_recipe(PAIR, "distillation.window=2", "batch_size=12"))
    assert not Cohort(run).train().errors
    check_replicas(run, atol=1e-6, step=10)


def test_a_window_changes_the_result(make_recipe: MakeRecipe) -> None:
    """The comparisons above could not fail if windows did nothing."""
    one, four = (reference.train(make_recipe(f"distillation.window={w}", *SMALL)) for w in (1, 4))
    assert not torch.equal(one[1]["layers.2.weight"], four[1]["layers.2.weight"])


@pytest.mark.parametrize(
    ("steps", "more"),
    [
        (2, ["distillation.method=general"]),
        (5, ["distillation.max_staleness=6"]),
        (11, ["distillation.window=epoch"]),
        (11, [*OWN_SAMPLES, "distillation.method=min_logit"]),
    ],
)
def test_stopped_within_a_window_and_resumed(
    more: list[str], steps: int, make_recipe: MakeRecipe, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_bank, "PART_BYTES", 300)
    recipe = make_recipe(*SMALL, "distillation.window=4", "data.holdout_per_class=1", *more)
    whole = Cohort(make_run(recipe)).train()
    assert not whole.errors
    asked = iter(range(10**6))
    stopped = Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= steps)
    assert not stopped.errors
    resumed = Cohort(make_run(recipe, "r", resume=True)).train()
    assert not resumed.errors
    assert resumed.run.step >= steps
    check(resumed.run)
    left, right = (_rows(run.run) for run in (whole, resumed))
    assert left == right
    assert any(split == "window" for _, _, split, _ in left)


def _rows(run: Run) -> dict[tuple[str, int, str, str], float]:
    rows = read_metrics(run.folder).to_pylist()
    keys = [(row["student"], row["step"], row["split"], row["name"]) for row in rows]
    return {key: row["value"] for key, row in zip(keys, rows, strict=True) if not key[3].endswith("_s")}


@pytest.mark.parametrize(
    "more", [["distillation.window=epoch"], [*OWN_SAMPLES, "data.loader_workers=1", VIEWS]]
)
def test_a_killed_student_changes_nothing(
    more: list[str], inject: Inject, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    inject("b", "forward", 13, "kill")
    run = make_run(make_recipe(*SMALL, *more, "failure.max_failures=1"))
    assert local.launch(run, lambda event: None, threading.Event())
    assert len(read_record(run.folder)["failures"]["causes"]) == 1
    check(run)


# -- what is recorded ----------------------------------------------------------------------------


@pytest.mark.parametrize("oldest", [None, 3])
def test_coverage_and_ages_are_those_of_the_orders(
    oldest: int | None, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    recipe = make_recipe(*SMALL, "distillation.window=4", f"distillation.max_staleness={oldest or 'null'}")
    run = make_run(recipe)
    assert not Cohort(run).train().errors
    found = _rows(run)
    training_data = TrainingData.open(recipe)
    orders = [[batch.ids.tolist() for batch in training_data.training_batches(i, 0)] for i in range(2)]
    for own, name in enumerate("ab"):
        seen: dict[int, int] = {}
        for epoch in range(3):
            ages, samples = [], 0
            for step in range(8 * epoch, 8 * epoch + 8):
                seen |= dict.fromkeys(orders[1 - own][step], step)
                ages += [step - seen[i] for i in orders[own][step] if i in seen]
                samples += 7
            ages = [age for age in ages if oldest is None or age <= oldest]
            key = name, 8 * epoch + 8, "window"
            assert found[(*key, "coverage")] == pytest.approx(len(ages) / samples)
            assert 0 < len(ages) < samples or epoch, "the test shall see both kinds of samples"
            assert found[(*key, "staleness")] == pytest.approx(np.mean(ages))
            assert found[(*key, "staleness/0")] == pytest.approx(ages.count(0) / len(ages))
            between = sum(4 <= age <= 15 for age in ages)
            assert found[(*key, "staleness/4-15")] == pytest.approx(between / len(ages))


def test_the_report_shows_them(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    run = make_run(make_recipe(*SMALL, "distillation.window=4"))
    assert not Cohort(run).train().errors
    html = page([load(run.folder.uri)])
    assert "<h2>Window</h2>" in html
    for ident in ("coverage", "staleness", "ages"):
        assert f'<figure id="{ident}">' in html
    plain = make_run(make_recipe("epochs=1"))
    assert not Cohort(plain).train().errors
    assert "<h2>Window</h2>" not in page([load(plain.folder.uri)])


# -- one step ------------------------------------------------------------------------------------

S, C = 3, 5


def contribution(ids: list[int], seed: int) -> Contribution:
    generator = torch.Generator().manual_seed(seed)
    found = torch.tensor(ids)
    return Contribution(found, found % C, 3 * torch.randn(len(ids), C, generator=generator))


def coordinator(*overrides: str) -> Aggregator:
    students = ", ".join(f"{{name: {name}, model: mlp}}" for name in "abc")
    recipe = parse_recipe(f"data: {{train: x, test: x}}\nstudents: [{students}]", overrides)
    return Aggregator(
        recipe, make_bank(recipe, 20, C), make_window_check(recipe, RunSchedule(1, 4, 0, 1, 1, 20))
    )


@pytest.mark.parametrize("method", ["naive", "linear", "min_logit", "mean", "general"])
def test_with_the_same_samples_a_bank_changes_nothing(method: str) -> None:
    more = [f"distillation.method={method}", "data.holdout_per_class=1"]
    plain, banked = coordinator(*more), coordinator(*more, "distillation.window=2")
    assert banked.bank is not None
    for step in range(2):
        parts = [
            contribution(np.random.default_rng(i).permutation(6).tolist(), i + 10 * step) for i in range(S)
        ]
        left, right = plain.answer(parts, step).target, banked.answer(parts, step).target
        assert left is not None
        assert right is not None
        assert torch.equal(left.ids, right.ids)
        assert torch.equal(left.log_probabilities, right.log_probabilities)


def test_a_sample_of_one_student_alone_has_no_target() -> None:
    found = coordinator("distillation.window=epoch")
    first = found.answer([contribution(ids, 0) for ids in ([1, 2], [2, 3], [4, 5])], 0)
    assert first.target is not None
    assert first.target.ids.tolist() == [2]
    second = found.answer([contribution(ids, 1) for ids in ([3, 4], [6, 1], [6, 7])], 1)
    assert second.target is not None
    assert second.target.ids.tolist() == [1, 3, 4, 6]
    assert second.known is not None
    assert second.known.age is not None
    # a's of steps 0 and 1, b's, c's, on samples 1, 3, 4, 6, 7
    assert second.known.age.tolist() == [[1, 0, 0, -1, -1], [0, 1, -1, 0, -1], [-1, -1, 1, 0, 0]]
    assert len(found.answer([contribution([i], 2) for i in (10, 11, 12)], 2).target.ids) == 0  # type: ignore[union-attr]


def test_the_order_of_rows_does_not_matter() -> None:
    parts = [contribution(ids, i) for i, ids in enumerate(([1, 2, 3], [3, 2, 4], [5, 1, 2]))]
    flipped = [Contribution(*(column.flip(0) for column in part)) for part in parts]
    one, other = (coordinator("distillation.window=4").answer(p, 0).target for p in (parts, flipped))
    assert one is not None
    assert other is not None
    assert torch.equal(one.log_probabilities, other.log_probabilities)


@pytest.mark.parametrize("method", ["naive", "linear", "min_logit", "mean", "general"])
def test_absent_students_are_as_if_they_were_not_there(method: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = 4 * torch.randn(4, 50, C, generator=generator), torch.arange(50) % C
    present = torch.rand(4, 50, generator=generator) < 0.5
    present[3] |= ~present.any(dim=0)
    weights = torch.tensor([0.0, 0.5, 0.3, 0.2], dtype=torch.float64)
    found = log_soft_target(method, logits.where(present[:, :, None], 9e9), labels, 2.0, weights, present)
    for row in range(50):
        there = present[:, row]
        share = weights[there] / weights[there].sum() if weights[there].sum() else torch.ones(1).double()
        alone = log_soft_target(method, logits[there, row][:, None], labels[row, None], 2.0, share)
        assert torch.allclose(found[row], alone[0], atol=1e-6)


def test_someone_must_be_present() -> None:
    with pytest.raises(ValueError, match="present_SB"):
        log_soft_target(
            "mean", torch.zeros(2, 3, C), torch.zeros(3).long(), 1.0, None, torch.zeros(2, 3).bool()
        )


@pytest.mark.parametrize("rows", [[], [1], [0, 2, 3], [0, 1, 2, 3]])
def test_a_sample_without_a_target_adds_nothing(rows: list[int]) -> None:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(4, C, generator=generator, dtype=torch.float64, requires_grad=True)
    p = torch.randn(4, C, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    covered = torch.tensor([row in rows for row in range(4)])
    loss = distillation_loss(z, p, 3.0, covered.nonzero()[:, 0])
    slow = torch.zeros(())
    for row in rows:
        q = (z[row] / 3).log_softmax(dim=0).detach()
        slow += 9 * sum(p[row, c].exp() * (p[row, c] - q[c]) for c in range(C)) / 4
    assert float(loss.detach()) == pytest.approx(float(slow))
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient[~covered].abs().sum() == 0
    assert bool((gradient[covered].abs().sum(dim=1) > 0).all())


# -- what is wrong is named ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["distillation.window=0"], ["distillation.window", "0"]),
        (["distillation.window=-3"], ["distillation.window", "-3"]),
        (["distillation.window=2.5"], ["distillation.window", "2.5"]),
        (["distillation.window=all"], ["distillation.window", "all"]),
        (["distillation.max_staleness=-1"], ["distillation.max_staleness", "-1"]),
        (["distillation.bank.top_k=0"], ["distillation.bank.top_k", "0"]),
        (["distillation.bank=disk"], ["distillation.bank", "disk"]),
        (["distillation.window=2", "distillation.method=dml"], ["'dml'", "window 1", "got 2", "'mean'"]),
    ],
)
def test_an_impossible_recipe(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        coordinator(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def damaged(part: Contribution, how: str) -> Contribution:
    """A contribution with one thing wrong."""
    ids, labels, logits = (column.clone() for column in part)
    if how == "label":
        labels[1] += 1
    elif how == "nan":
        logits[1, 2] = torch.nan
    else:
        ids[1] = {"twice": int(ids[0]), "negative": -1, "beyond": 20}[how]
    return Contribution(ids, labels, logits)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("label", LabelMismatch, "label 3 for sample 2"),
        ("twice", MisalignedIds, "sample 1 occurs twice"),
        ("negative", MisalignedIds, "sample -1"),
        ("beyond", MisalignedIds, "sample 20, but there are 20"),
    ],
)
def test_a_wrong_contribution_is_refused_and_named(how: str, error: type[KdclError], words: str) -> None:
    parts = [contribution([1, 2, 3], 0), contribution([4, 5, 6], 1), contribution([7, 8, 9], 2)]
    found = coordinator("distillation.window=4")
    found.answer(parts, 0)
    with pytest.raises(error, match=words) as caught:
        found.answer([parts[1], parts[2], damaged(parts[0], how)], 1)
    assert caught.value.student == "c"


def test_nothing_kept_is_checked_too() -> None:
    parts = [contribution([1], 0), damaged(contribution([4, 5], 1), "nan"), contribution([7], 2)]
    answer = coordinator("distillation.window=4", "distillation.method=none").answer(parts, 0)
    assert answer.bad == (1,)


def test_logits_that_are_not_finite_are_not_kept_and_the_older_ones_still_teach() -> None:
    parts = [contribution([1, 2, 3], 0), contribution([4, 5, 6], 1), contribution([7, 8, 9], 2)]
    found = coordinator("distillation.window=4")
    found.answer(parts, 0)
    answer = found.answer(
        [contribution([7, 8, 9], 0), contribution([1, 2, 3], 1), damaged(parts[1], "nan")], 1
    )
    assert answer.bad == (2,)
    assert answer.known is not None
    assert answer.target is not None
    assert answer.known.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert answer.known.age is not None
    assert answer.known.age.tolist() == [
        [1, 1, 1, -1, -1, -1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, -1, -1, -1],
        [-1, -1, -1, -1, -1, -1, 1, 1, 1],
    ]
    assert answer.target.ids.tolist() == [1, 2, 3, 7, 8, 9]
    assert bool(torch.isfinite(answer.target.log_probabilities).all())


@pytest.mark.parametrize("odd", [0, 1, 2])
@pytest.mark.parametrize("how", ["foreign", "twice"])
def test_a_student_with_other_samples_is_named_at_the_windows_end(odd: int, how: str) -> None:
    found = coordinator("distillation.window=2", "distillation.method=none")
    orders = [([1, 2], [3, 4]), ([4, 1], [2, 3]), ([3, 2], [1, 4])]
    for step in (0, 1):
        found.answer([contribution(order[step], 0) for order in orders], step)
    first, (one, _) = orders[odd]
    orders[odd] = first, [one, 9 if how == "foreign" else first[0]]
    found.answer([contribution(order[0], 0) for order in orders], 2)
    with pytest.raises(MisalignedIds, match="other samples") as caught:
        found.answer([contribution(order[1], 0) for order in orders], 3)
    assert caught.value.student == "abc"[odd]


def test_an_epochs_last_window_may_be_short() -> None:
    window_check = WindowCheck(["a", "b"], width=3, steps_per_epoch=4)
    for epoch in range(2):
        for step, (a, b) in enumerate([(1, 2), (2, 3), (3, 1), (4, 4)]):
            window_check.add([contribution([a], 0), contribution([b], 0)], [0, 1], 4 * epoch + step)
    for step, (a, b) in enumerate([(1, 2), (2, 4)]):
        window_check.add([contribution([a], 0), contribution([b], 0)], [0, 1], 8 + step)
    with pytest.raises(MisalignedIds):
        window_check.add([contribution([3], 0), contribution([1], 0)], [0, 1], 10)


def test_rows_of_the_answer() -> None:
    students = ", ".join(f"{{name: {name}, model: mlp}}" for name in "abc")
    text = f"data: {{train: x, test: x}}\nbatch_size: 10\nstudents: [{students}]"
    expected = {"window=1": 10, "window=2": 20, "window=9": 30, "window=epoch": 30, "method=none": 0}
    for override, rows in expected.items():
        assert answer_rows(parse_recipe(text, [f"distillation.{override}"])) == rows


def test_the_plan_knows_the_coordinators_part() -> None:
    cohort = "{name: a, model: mlp}, {name: b, model: mlp}"
    text = f"data: {{train: x, test: x}}\nbatch_size: 10\nstudents: [{cohort}]"
    for overrides in ([], ["window=3"], ["window=epoch", "bank.top_k=2", "bank.folder=/nowhere/here"]):
        recipe = parse_recipe(text, [f"distillation.{override}" for override in overrides])
        assert 0 < _ensemble(recipe, C) < 10
