"""Students that join and leave: who takes part in which epoch, and what a recipe may say of it."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from kdcl_dist.config.differences import forbidden_changes
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.rounds import Kind, Round, RunSchedule
from kdcl_dist.errors import RecipeError
from kdcl_dist.student.learning_rate import learning_rate

#: Of ten epochs `a` has all, `b` leaves after the fourth, `c` is there from the third to the fourth.
COHORT = (
    "{name: a, model: mlp}, {name: b, model: mlp, until_epoch: 4}, "
    "{name: c, model: mlp, from_epoch: 3, until_epoch: 4}"
)


def recipe(*overrides: str, cohort: str = COHORT) -> Recipe:
    return parse_recipe(f"epochs: 10\ndata: {{train: x, test: x}}\nstudents: [{cohort}]", overrides)


def test_who_takes_part_and_who_learns() -> None:
    made = recipe("students.b.epochs=2", "students.a.epochs=10")
    a, b, c = made.students
    assert [made.cohort(epoch) for epoch in range(11)] == [*[[0, 1]] * 2, *[[0, 1, 2]] * 2, *[[0]] * 7]
    assert made.changes == (1, 3)
    assert [epoch for epoch in range(10) if made.learns(b, epoch)] == [0, 1]
    assert [epoch for epoch in range(10) if made.learns(c, epoch)] == [2, 3]
    assert [made.epochs_of(student) for student in (a, b, c)] == [10, 2, 2]
    assert (made.ends_schedule(a), b.has_left(3), b.has_left(4)) == (False, False, True)
    assert recipe(cohort="{name: a, model: mlp}").changes == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["students.a.from_epoch=11"], "students.a.from_epoch: 11 is more than the run has: epochs is 10"),
        (["students.b.until_epoch=11"], "students.b.until_epoch: 11 is more than the run has: epochs is 10"),
        (["students.a.epochs=11"], "students.a.epochs: 11 is more than the run has: epochs is 10"),
        (
            ["students.a.from_epoch=3", "students.a.epochs=9"],
            "students.a.epochs: 9 from epoch 3 on are more than the run has: epochs is 10",
        ),
        (["students.c.until_epoch=2"], "students.2: until_epoch: 2 is before from_epoch, 3"),
        (["students.a.from_epoch=0"], "students.0.from_epoch: Input should be greater than 0 (got 0)"),
        (["students.a.until_epoch=9"], "epochs: 10 is more than any student learns for; lower it"),
        (["students.b=null", "students.a.from_epoch=2"], "students: none learns in epoch 1; see their"),
        (["students.a.from_epoch=6"], "students: none learns in epoch 5; see their"),
        (
            ["distillation={method: teacher, teacher: b}", "students.b.weights=w"],
            "students: no teacher (b) takes part in epoch 5; see their from_epoch and until_epoch",
        ),
    ],
)
def test_epochs_that_do_not_fit_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_epochs_beyond_count_are_checked_at_once() -> None:
    assert recipe("epochs=1000000000").changes == (1, 3)


def test_the_epoch_before_a_change_ends_as_the_last() -> None:
    schedule = RunSchedule(4, 2, 1, 1, 9, val_batches=1, evaluate_epochs=9, changes=(1,))
    rounds = list(schedule.rounds(schedule.first(0)))
    assert [round.kind for round in rounds if round.epoch == 0] == [Kind.TRAIN, Kind.TRAIN, Kind.HOLDOUT]
    kinds = [Kind.TRAIN, Kind.TRAIN, Kind.HOLDOUT, Kind.VALIDATE, Kind.EVALUATE, Kind.CHECKPOINT]
    for epoch in (1, 3):
        assert [round.kind for round in rounds if round.epoch == epoch] == kinds
    assert [round for round in rounds if schedule.changes_cohort(round)] == [Round(Kind.CHECKPOINT, 1, 4)]
    assert not schedule.changes_cohort(Round(Kind.CHECKPOINT, 1, 3))  # asked for in the middle
    early = RunSchedule(2, 2, 1, 1, 9, changes=(1,))
    assert not early.changes_cohort(Round(Kind.CHECKPOINT, 1, 4))
    sent = asdict(schedule) | {"changes": [1]}
    assert RunSchedule.of(sent) == schedule
    assert schedule.shortened(1).changes == ()


def test_the_schedule_of_a_student_runs_over_its_own_epochs() -> None:
    """The rates of a student that joins are those of one that begins with the run, so many steps later."""
    made = recipe("students.c.schedule.name=cosine", "students.c.optimizer.lr=0.5")
    student = made.students[2]
    own = [
        learning_rate(student.schedule, 0.5, step=step, steps_per_epoch=3, epochs=made.epochs_of(student))
        for step in range(6)
    ]
    assert own[0] == 0.5
    assert own == sorted(own, reverse=True)
    assert own[-1] < 0.05


def test_a_resumed_run_keeps_who_is_there_when() -> None:
    (line,) = forbidden_changes(recipe(), recipe("students.c.from_epoch=2"))
    assert line == "students.2.from_epoch: 3 -> 2"
    bound = [
        "students.a.schedule.name=cosine",
        "students.b.schedule.name=cosine",
        "students.c.schedule.name=cosine",
    ]
    (line,) = forbidden_changes(recipe(*bound), recipe(*bound, "epochs=12"))
    assert "the learning rate of a (schedule 'cosine') depends on the epochs" in line


def test_a_run_has_so_many_students_and_no_more() -> None:
    def many(count: int) -> str:
        return ", ".join(f"{{name: s{number}, model: mlp}}" for number in range(count))

    assert len(recipe(cohort=many(256)).students) == 256
    with pytest.raises(RecipeError, match="students: 257 are more than the 256 that a run can have in all"):
        recipe(cohort=many(257))
