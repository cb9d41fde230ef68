"""The order of a run: what follows what, and that any starting point continues it exactly."""

from __future__ import annotations

import pytest

from kdcl_dist.config.rounds import Kind, Plan, Turn


def test_one_epoch_written_out() -> None:
    plan = Plan(epochs=1, steps_per_epoch=2, holdout_batches=1, test_batches=2, checkpoint_epochs=1)
    assert list(plan.turns(plan.first(0))) == [
        Turn(Kind.TRAIN, 0, 0),
        Turn(Kind.TRAIN, 0, 1),
        Turn(Kind.HOLDOUT, 0, 2, 0),
        Turn(Kind.EVALUATE, 0, 2, 0),
        Turn(Kind.EVALUATE, 0, 2, 1),
        Turn(Kind.CHECKPOINT, 0, 2),
        Turn(Kind.END, 1, 2),
    ]


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_checkpoints_come_every_so_many_epochs_and_at_the_end(every: int) -> None:
    plan = Plan(epochs=5, steps_per_epoch=2, holdout_batches=0, test_batches=1, checkpoint_epochs=every)
    found = [turn.epoch for turn in plan.turns(plan.first(0)) if turn.kind is Kind.CHECKPOINT]
    assert found == sorted({*range(every - 1, 5, every), 4})


def test_every_point_at_which_a_run_can_stop_continues_it() -> None:
    plan = Plan(epochs=3, steps_per_epoch=4, holdout_batches=2, test_batches=1, checkpoint_epochs=2)
    whole = list(plan.turns(plan.first(0)))
    for place, turn in enumerate(whole):
        if turn.kind is Kind.TRAIN and (turn.step + 1) % 4:  # stopped between the steps of an epoch
            assert list(plan.turns(plan.first(turn.step + 1))) == whole[place + 1 :]
        if turn.kind is Kind.CHECKPOINT:
            assert list(plan.turns(plan.first(turn.step))) == whole[place + 1 :]


def test_a_cast_can_go_on_at_every_turn() -> None:
    plan = Plan(epochs=2, steps_per_epoch=2, holdout_batches=2, test_batches=3, checkpoint_epochs=1)
    whole = list(plan.turns(plan.first(0)))
    assert sorted(whole, key=lambda turn: turn.moment) == whole
    for place, turn in enumerate(whole):
        assert list(plan.turns(turn)) == whole[place:]
        assert plan.after(turn) == whole[min(place + 1, len(whole) - 1)]
        assert turn.rewound in whole
        assert (turn.rewound.kind, turn.rewound.part) == (turn.kind, 0)
