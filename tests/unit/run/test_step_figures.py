"""A step's figures from those of its parts."""

from __future__ import annotations

from kdcl_dist.run.step_figures import of_parts


def test_durations_add_up_and_others_are_averaged() -> None:
    parts = [{"loss": 1.0, "step_s": 0.5}, {"loss": 2.0, "step_s": 0.25, "top1": 0.5}]
    assert of_parts(parts) == {"loss": 1.5, "step_s": 0.75, "top1": 0.5}
    one = {"loss": 0.1, "step_s": 0.3, "lr": 1e-3}
    assert of_parts([one]) == one
