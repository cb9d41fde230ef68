"""A step's figures from those of its parts."""

from __future__ import annotations

from kdcl_dist.run.step_figures import of_parts


def test_durations_add_up_and_others_are_averaged() -> None:
    parts = [{"loss": 1.0, "step_s": 0.5}, {"loss": 2.0, "step_s": 0.25, "top1": 0.5}]
    assert of_parts(parts) == {"loss": 1.5, "step_s": 0.75, "top1": 0.5}
    one = {"loss": 0.1, "step_s": 0.3, "lr": 1e-3}
    assert of_parts([one]) == one


def test_a_pause_in_one_part_is_one_of_the_step_and_a_student_may_have_any_name() -> None:
    parts = [{"paused": 0.0, "disagreement/vit_s": 0.6}, {"paused": 1.0, "disagreement/vit_s": 0.8}]
    assert of_parts(parts) == {"paused": 1.0, "disagreement/vit_s": 0.7}
