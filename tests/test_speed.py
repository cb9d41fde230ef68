"""A guard, not a measurement: no ratio of the speed table is off its goal by more than a factor of two."""

from __future__ import annotations

import pytest

from benchmarks.speed import MODULES


@pytest.mark.parametrize("module", MODULES)
def test_no_ratio_is_far_from_its_goal(module: str) -> None:
    figures = MODULES[module](True)
    assert figures
    for figure in figures:
        twice = figure.goal / 2 if figure.at_least else figure.goal * 2
        assert figure._replace(goal=twice).reached, figure
