"""The order of a run: what follows what, and that any starting point continues it exactly."""

from __future__ import annotations

import pytest

from kdcl_dist.config.rounds import Kind, Round, RunSchedule


def test_one_epoch_written_out() -> None:
    schedule = RunSchedule(
        epochs=1, steps_per_epoch=2, holdout_batches=1, test_batches=2, checkpoint_epochs=1
    )
    assert list(schedule.rounds(schedule.first(0))) == [
        Round(Kind.TRAIN, 0, 0),
        Round(Kind.TRAIN, 0, 1),
        Round(Kind.HOLDOUT, 0, 2, 0),
        Round(Kind.EVALUATE, 0, 2, 0),
        Round(Kind.EVALUATE, 0, 2, 1),
        Round(Kind.CHECKPOINT, 0, 2),
        Round(Kind.END, 1, 2),
    ]


def test_a_step_has_parts() -> None:
    schedule = RunSchedule(
        epochs=2, steps_per_epoch=2, holdout_batches=0, test_batches=1, checkpoint_epochs=2, accumulate=3
    )
    whole = list(schedule.rounds(schedule.first(0)))
    parts = [round for round in whole if round.kind is Kind.TRAIN]
    assert [(r.epoch, r.step, r.part) for r in parts] == [
        (step // 2, step, part) for step in range(4) for part in range(3)
    ]
    assert [schedule.ends_step(round) for round in parts] == [False, False, True] * 4
    assert [schedule.ends_epoch(round) for round in parts] == [*[False] * 5, True] * 2
    for index, round in enumerate(whole):
        assert list(schedule.rounds(round)) == whole[index:]
        assert schedule.after(round) == whole[min(index + 1, len(whole) - 1)]
        assert round.rewound == Round(round.kind, round.epoch, round.step)


def test_a_second_pass_of_tests_follows_the_first() -> None:
    schedule = RunSchedule(
        epochs=1, steps_per_epoch=1, holdout_batches=1, test_batches=3, checkpoint_epochs=1, test_passes=2
    )
    tests = [round for round in schedule.rounds(schedule.first(0)) if round.kind is Kind.EVALUATE]
    assert [schedule.test_batch(round) for round in tests] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [schedule.ends_test(round) for round in tests] == [False] * 5 + [True]
    assert {round.rewound for round in tests} == {tests[0]}


def test_validation_and_best_written_out() -> None:
    schedule = RunSchedule(3, 1, 0, 1, 9, val_batches=2, evaluate_epochs=2, best=True)
    assert list(schedule.rounds(schedule.first(0))) == [
        Round(Kind.TRAIN, 0, 0),
        Round(Kind.TRAIN, 1, 1),
        Round(Kind.VALIDATE, 1, 2, 0),
        Round(Kind.VALIDATE, 1, 2, 1),
        Round(Kind.CHECKPOINT, 1, 2),
        Round(Kind.TRAIN, 2, 2),
        Round(Kind.VALIDATE, 2, 3, 0),
        Round(Kind.VALIDATE, 2, 3, 1),
        Round(Kind.EVALUATE, 2, 3, 0),
        Round(Kind.CHECKPOINT, 2, 3),
        Round(Kind.BEST, 3, 3, 0),
        Round(Kind.END, 3, 3),
    ]
    ends = [
        round for round in schedule.rounds(schedule.first(0)) if round.kind in (Kind.VALIDATE, Kind.EVALUATE)
    ]
    assert [schedule.ends_tests(round) for round in ends] == [False, True, False, False, True]


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize("val_batches", [0, 2])
def test_tests_come_every_so_many_epochs_and_at_the_end(every: int, val_batches: int) -> None:
    schedule = RunSchedule(5, 2, 0, 3, 1, val_batches=val_batches, evaluate_epochs=every, test_passes=2)
    rounds = list(schedule.rounds(schedule.first(0)))
    due = sorted({*range(every - 1, 5, every), 4})
    found = {kind: [round.epoch for round in rounds if round.kind is kind] for kind in Kind}
    assert found[Kind.VALIDATE] == [epoch for epoch in due for _ in range(2 * val_batches)]
    assert found[Kind.EVALUATE] == [epoch for epoch in ([4] if val_batches else due) for _ in range(6)]
    assert found[Kind.CHECKPOINT] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_checkpoints_come_every_so_many_epochs_and_at_the_end(every: int) -> None:
    schedule = RunSchedule(
        epochs=5, steps_per_epoch=2, holdout_batches=0, test_batches=1, checkpoint_epochs=every
    )
    found = [round.epoch for round in schedule.rounds(schedule.first(0)) if round.kind is Kind.CHECKPOINT]
    assert found == sorted({*range(every - 1, 5, every), 4})


@pytest.mark.parametrize("more", [{}, {"val_batches": 2, "evaluate_epochs": 2, "best": True}])
def test_every_point_at_which_a_run_can_stop_continues_it(more) -> None:
    schedule = RunSchedule(
        epochs=3, steps_per_epoch=4, holdout_batches=2, test_batches=1, checkpoint_epochs=2, **more
    )
    whole = list(schedule.rounds(schedule.first(0)))
    for index, round in enumerate(whole):
        if round.kind is Kind.TRAIN and (round.step + 1) % 4:  # stopped between the steps of an epoch
            assert list(schedule.rounds(schedule.first(round.step + 1))) == whole[index + 1 :]
        if round.kind is Kind.CHECKPOINT:
            assert list(schedule.rounds(schedule.first(round.step))) == whole[index + 1 :]


@pytest.mark.parametrize("more", [{}, {"val_batches": 2, "best": True, "test_passes": 2}])
def test_a_cast_can_go_on_at_every_turn(more) -> None:
    schedule = RunSchedule(
        epochs=2, steps_per_epoch=2, holdout_batches=2, test_batches=3, checkpoint_epochs=1, **more
    )
    whole = list(schedule.rounds(schedule.first(0)))
    assert sorted(whole, key=lambda round: round.moment) == whole
    for index, round in enumerate(whole):
        assert list(schedule.rounds(round)) == whole[index:]
        assert schedule.after(round) == whole[min(index + 1, len(whole) - 1)]
        assert round.rewound in whole
        assert (round.rewound.kind, round.rewound.part) == (round.kind, 0)


def test_a_dry_run_has_some_steps_and_one_batch_of_each_pass() -> None:
    whole = RunSchedule(
        epochs=9,
        steps_per_epoch=5,
        holdout_batches=4,
        test_batches=3,
        checkpoint_epochs=2,
        val_batches=2,
        best=True,
        test_passes=2,
    )
    dry = whole.shortened(2)
    kinds = [round.kind for round in dry.rounds(dry.first(0))]
    tests = [Kind.VALIDATE] * 2 + [Kind.EVALUATE] * 2
    assert kinds == [Kind.TRAIN] * 2 + [Kind.HOLDOUT, *tests, Kind.CHECKPOINT, Kind.END]
    assert whole.shortened(100).steps_per_epoch == 5
