"""A guard, not a measurement: no ratio of the speed table is off its goal by more than a factor of two.

To be run with nothing beside it: `make guard`.
"""

from __future__ import annotations

import pytest

from benchmarks.figures import Figure
from benchmarks.speed import MODULES

#: A machine that others use too can spoil a measurement, but hardly all of them.
TRIES = 3

pytestmark = pytest.mark.speed


# "scale" is how well a model predicts, not how fast anything is.
@pytest.mark.parametrize("module", [name for name in MODULES if name != "scale"])
def test_no_ratio_is_far_from_its_goal(module: str) -> None:
    for _ in range(TRIES):
        figures = MODULES[module](True)
        assert figures
        far = [figure for figure in figures if not figure._replace(goal=twice(figure)).reached]
        if not far:
            return
    pytest.fail(f"{TRIES} times in a row off by more than a factor of two, at last: {far}")


def twice(figure: Figure) -> float:
    return figure.goal / 2 if figure.at_least else figure.goal * 2
