"""The charts of a report: axes, lines, bars and heat maps as SVG."""

from __future__ import annotations

import math
import re
from html import unescape

import numpy as np
import pytest

from kdcl_dist.report.axis import choose_scale, number
from kdcl_dist.report.bars import heat_map, stacked_bars
from kdcl_dist.report.lines import Line, line_chart
from kdcl_dist.report.points import Point, point_chart
from kdcl_dist.report.svg import STYLES, WIDTH, marker, shorten, spread, style, text
from kdcl_dist.utils.intervals import Interval


def test_a_line_says_every_value() -> None:
    points = [(1.0, 12.34), (2.0, 15.5), (3.0, -2.25), (5.0, 15.25)]
    svg = line_chart("x", "title", "unit", [Line("a", 0, points)])
    path = re.search(r'class="l c0 d0" d="([^"]+)"', svg)
    assert path is not None
    steps = [float(text) for text in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", path[1])]
    assert np.cumsum(steps[::2]).tolist() == [1, 2, 3, 5]
    assert np.cumsum(steps[1::2]) == pytest.approx([y for _, y in points])


@pytest.mark.parametrize(
    ("values", "options", "labels"),
    [
        ((0.13, 0.97), {}, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ((1, 20), {"whole": True, "tight": True}, ["5", "10", "15", "20"]),
        ((1, 2), {"whole": True, "tight": True}, ["1", "2"]),
        ((1, 1), {"whole": True, "tight": True}, ["1"]),
        ((0.001, 0.1), {"log": True}, ["0.001", "0.01", "0.1"]),
        ((-0.5, 0.4), {}, ["−0.6", "−0.4", "−0.2", "0.0", "0.2", "0.4"]),
        ((2.0, 11.0), {}, ["2", "4", "6", "8", "10", "12"]),
        ((0.0, 12.0), {}, ["0.0", "2.5", "5.0", "7.5", "10.0", "12.5"]),
    ],
)
def test_ticks(values: tuple[float, float], options: dict[str, bool], labels: list[str]) -> None:
    assert choose_scale(values, **options).labels() == labels  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, 1e-12, 5e9, -3.0])
def test_a_constant_has_a_scale(value: float) -> None:
    scale = choose_scale([value, value])
    assert scale.low < value < scale.high
    assert 0 < scale.position(value) < 1
    assert len(set(scale.labels())) == len(scale.ticks) >= 2


def test_labels_are_spread() -> None:
    assert spread([60, 61, 59, 10], gap=16, low=20, high=110) == pytest.approx([60, 76, 44, 20])
    assert spread([100, 100, 10], gap=16, low=20, high=110) == pytest.approx([92, 108, 20])
    assert spread([109, 110], gap=16, low=20, high=110) == pytest.approx([94, 110])


def test_a_scale_contains_its_values_and_its_ticks_are_even() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = (rng.normal(size=4) * 10.0 ** rng.integers(-6, 6)).tolist()
        scale = choose_scale(values)
        assert scale.low <= min(values) <= max(values) <= scale.high
        assert np.diff(scale.ticks) == pytest.approx(scale.ticks[1] - scale.ticks[0], rel=1e-6)
        assert len(set(scale.labels())) == len(scale.ticks)
        assert (scale.position(scale.low), scale.position(scale.high)) == (0, 1)


def test_a_logarithmic_scale_needs_positive_values_of_a_wide_range() -> None:
    assert choose_scale([1e-4, 0.1], log=True).position(1e-2) == pytest.approx(2 / 3)
    assert not choose_scale([0.0, 100.0], log=True).log
    assert not choose_scale([1.0, 20.0], log=True).log


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(1.005, 1, "1.0"), (-2.5, 2, "−2.50"), (math.nan, 2, "–"), (math.inf, 0, "–")],
)
def test_numbers(value: float, digits: int, shown: str) -> None:
    assert number(value, digits) == shown


def test_a_long_name_is_cut_off_and_whole_in_its_tooltip() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abcde…"
    assert text(1, 2, "a<b" * 5, limit=6).startswith('<text x="1" y="2"><title>' + "a&lt;b" * 5 + "</title>")
    assert "<title>" not in text(1, 2, "short", limit=6)


def test_styles_repeat_after_every_combination() -> None:
    seen = [style(index) for index in range(STYLES**2)]
    assert len(set(seen)) == STYLES**2
    assert style(-1) not in seen
    assert marker(0, 0, -1) == marker(0, 0, 0)
    assert marker(0, 0, STYLES) == marker(0, 0, 1)


def test_every_bar_is_as_long_as_its_parts() -> None:
    bars = {"a": [1.0, 2.0, math.nan], "b": [0.5, 0.0, 4.5]}
    svg = stacked_bars("x", "title", "ms", ["one", "two", "three"], bars)
    widths = [float(width) for width in re.findall(r'part" [^>]* width="([\d.]+)"', svg)]
    assert len(widths) == 4
    assert sum(widths[:2]) / sum(widths[2:]) == pytest.approx(3 / 5, rel=1e-2)
    assert widths[1] / widths[0] == pytest.approx(2, rel=1e-2)
    assert "a: 3.0 in all; b: 5.0 in all" in svg


def test_many_parts_fill_several_lines_of_the_legend() -> None:
    parts = [f"a part with a long name {i}" for i in range(5)]
    svg = stacked_bars("x", "title", "ms", parts, {"a": [1.0] * 5})
    legend = re.findall(r'<rect class="p\d" x="([\d.]+)" y="(\d+)"', svg)
    assert len(legend) == 5
    assert len({y for _, y in legend}) > 1
    assert all(float(x) < WIDTH for x, _ in legend)


def test_a_heat_map_says_every_cell() -> None:
    svg = unescape(heat_map("x", "title", ["a", "b"], ["<1>", "2"], [[10.0, 0.0], [math.nan, 5.0]]))
    assert "a: <1> 10.0, 2 0.0; b: <1> –, 2 5.0." in svg
    shades = [float(shade) for shade in re.findall(r'fill-opacity="([\d.]+)"', svg)]
    assert shades == [0.7, 0.04, 0, 0.37]


def test_points_with_intervals() -> None:
    points = [
        Point("<a>", 0, Interval(2.0, 1.0, 3.0, 0.95)),
        Point("b", 1, Interval(4.0, 3.5, 4.5, 0.95)),
        Point("one run", 2, Interval(3.0, math.nan, math.nan, math.nan)),
    ]
    svg = point_chart("x", "title", "%", points, 1)
    said = "Points with intervals, in %: <a> 2.0 (from 1.0 to 3.0), b 4.0 (from 3.5 to 4.5), one run 3.0."
    assert said in unescape(svg)
    places = [float(x) for x in re.findall(r'class="m" transform="translate\(([\d.]+) ', svg)]
    lines = [
        [float(x) for x in found] for found in re.findall(r'class="w" d="M([\d.]+) [\d.]+H([\d.]+)', svg)
    ]
    assert len(lines) == 2
    unit = (places[1] - places[0]) / 2
    assert lines[0] == pytest.approx([places[0] - unit, places[0] + unit], abs=0.2)
    assert lines[1] == pytest.approx([places[1] - unit / 2, places[1] + unit / 2], abs=0.2)
    assert places[2] == pytest.approx(places[0] + unit, abs=0.2)
    assert "zero" not in svg


def test_the_frame_cuts_off_the_interval_of_few_runs() -> None:
    points = [Point(name, i, Interval(2.0 + i, 1.9 + i, 2.1 + i, 0.95)) for i, name in enumerate("abc")]
    points.append(Point("d", 3, Interval(2.5, -90.0, 95.0, 0.95)))
    svg = point_chart("x", "title", "%", points, 1, zero=True)
    places = [float(x) for x in re.findall(r'class="m" transform="translate\(([\d.]+) ', svg)]
    ends = [float(x) for found in re.findall(r'class="w" d="M([\d.]+) [\d.]+H([\d.]+)', svg) for x in found]
    assert places[2] - places[0] > 100
    assert 0 < min(ends) < max(ends) < WIDTH
    assert svg.count('class="zero"') == 1
    assert "+2.0" in svg


def test_a_band_ends_at_the_frame() -> None:
    points = [(1.0, 50.0), (2.0, 60.0)]
    svg = line_chart("x", "t", "%", [Line("a", 0, points, [(1.0, -900.0, 900.0), (2.0, 55.0, 65.0)])])
    band = re.search(r'class="b c0 d0" d="([^"]+)z"', svg)
    assert band is not None
    steps = [float(step) for step in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", band[1])]
    heights = np.cumsum(steps[1::2])
    assert 50 <= heights.min() <= heights.max() <= 66


def test_a_logarithmic_chart_draws_logarithms() -> None:
    svg = line_chart("x", "t", "lr", [Line("a", 0, [(1.0, 0.1), (2.0, 0.001)])], log=True)
    assert 'data-log="1"' in svg
    path = re.search(r'class="l c0 d0" d="m1(-?[\d.]+)l1(-?[\d.]+)"', svg)
    assert path is not None
    assert [float(step) for step in path.groups()] == pytest.approx([-1, -2])
