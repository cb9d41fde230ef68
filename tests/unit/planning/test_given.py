"""Costs and links that are given by hand; their errors are in test_plan_command."""

from __future__ import annotations

import pytest
from cohorts import MakeRecipe

from kdcl_dist.errors import RecipeError
from kdcl_dist.planning.given import ENSEMBLE, parse_given, parse_link
from kdcl_dist.planning.step_model import Cost, Link


def test_seconds_belong_to_the_whole_batch_or_to_a_number_of_samples(make_recipe: MakeRecipe) -> None:
    found = parse_given(["a=0.5", "a@4=0.25", "ensemble=1e-3"], make_recipe("batch_size=16"))
    assert found == {
        "a": {16: Cost(0.0, 0.5), 4: Cost(0.0, 0.25)},
        ENSEMBLE: {16: Cost(0.0, 0.001)},
    }
    assert parse_given([], make_recipe()) == {}


def test_the_last_cost_of_a_number_of_samples_counts(make_recipe: MakeRecipe) -> None:
    assert parse_given(["a=0.5", "a=0.75"], make_recipe())["a"] == {16: Cost(0.0, 0.75)}


def test_a_link_has_latency_and_bandwidth() -> None:
    assert parse_link("0.01:1e6") == Link(0.01, 1e6)
    assert parse_link("0:1") == Link(0.0, 1.0)


@pytest.mark.parametrize("text", ["", ":", "1", "-1:5", "1:0", "1:-2", "nan:1", "inf:1", "1:nan"])
def test_a_link_without_both_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="SECONDS:BYTES is needed"):
        parse_link(text)
