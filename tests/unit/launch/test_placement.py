"""The capacity of hosts for a cohort: which worker runs where, and which lacks what."""

from __future__ import annotations

import pytest
from cohorts import MakeRecipe

from kdcl_dist.launch.preflight.checks import placement
from kdcl_dist.launch.preflight.placement import (
    ACCELERATOR,
    Host,
    Need,
    Slot,
    assign,
    kinds_of,
    lacks,
    needs_of,
    reserved,
    spares_in_words,
)

MANY = "failure.max_failures=8"


def test_a_cohort_that_fits() -> None:
    needs = [Need("a", 2), Need("b", 2, 0.5, "A100"), Need("c", 2, 0.5, "A100"), Need("d", 1, 1, "T4")]
    hosts = [Host("h", 2), Host("x", 4, 1, {ACCELERATOR: "A100"}), Host("y", 4, 1, {ACCELERATOR: "T4"})]
    assert lacks(needs, hosts) == []


def test_needs_of_an_accelerator_type_choose_first() -> None:
    needs = [Need("any", 1, 1), Need("a100", 1, 1, "A100")]
    hosts = [Host("x", 4, 1, {ACCELERATOR: "A100"}), Host("y", 4, 1, {ACCELERATOR: "T4"})]
    assert lacks(needs, hosts) == []


def test_shares_of_a_gpu_are_of_one_device() -> None:
    needs = [Need(name, 1, 0.6) for name in "abc"]
    assert lacks(needs, [Host("x", 8, 3)]) == []
    assert len(lacks(needs, [Host("x", 8, 2)])) == 1


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (Need("big", 1, 0, "H100"), ["'big'", "no host offers", "H100", "students.big.accelerator"]),
        (Need("big", 1, 1), ["'big'", "GPU 1", "x: CPU 4", "students.big.resources"]),
        (Need("big", 9), ["'big'", "CPU 9", "x: CPU 4"]),
        (Need("big", 3), ["'big'", "no capacity left", "1 other"]),
    ],
)
def test_each_lack_is_one_line(need: Need, words: list[str]) -> None:
    (line,) = lacks([Need("small", 2), need], [Host("x", 4)])
    assert all(word in line for word in words), line


def test_every_worker_takes_what_its_student_asks_for(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("students.a.resources.cpu=3", "students.b.accelerator=T4")
    assert needs_of(recipe) == [Need("a", 3), Need("b", 1, 0, "T4")]
    assert "nowhere" not in placement(needs_of(recipe), []).figure
    assert len(placement(needs_of(recipe), []).failures) == 2


def test_a_large_network_and_three_small_ones_fit_two_gpus() -> None:
    needs = [Need(name, 1, 0.3333) for name in "abc"] + [Need("large", 1, 1)]
    assert lacks(needs, [Host("x", 4, 2)]) == []
    assert lacks(needs, [Host("x", 1, 1), Host("y", 3, 1)]) == []
    (line,) = lacks(needs, [Host("x", 4, 1)])
    assert line.startswith("student 'large': no capacity left for CPU 1, GPU 1 beside the 3 other")


def test_what_is_hard_to_place_chooses_first() -> None:
    assert lacks([Need("a", 1), Need("b", 1), Need("c", 3), Need("d", 3)], [Host("x", 4), Host("y", 4)]) == []
    shares = [Need(f"s{number}", 1, share) for number, share in enumerate((0.4, 0.5, 0.5, 0.6))]
    assert lacks(shares, [Host("x", 4, 2)]) == []


def test_workers_of_one_kind_take_the_same() -> None:
    small, large, typed = Need("s", 1, 0.5), Need("l", 2, 1), Need("t", 1, 0, "T4")
    assert kinds_of([small, large, small, Need("c", 1)]) == [[1], [0, 2], [3]]
    assert kinds_of([large, small, typed]) == [[2], [0], [1]], "of an accelerator type first"
    assert kinds_of([Need("c", 1), typed]) == [[1, 0]], "a label makes no kind, but comes first in one"


def test_slots_name_host_and_device() -> None:
    needs = [Need("any", 1, 0.6), Need("cpu", 1), Need("a100", 1, 0.6, "A100"), Need("late", 1, 0.6)]
    hosts = [Host("x", 3, 2, {ACCELERATOR: "A100"}), Host("y", 1)]
    assert assign(needs, hosts) == [Slot(0, 1), Slot(0, None), Slot(0, 0), None]
    assert assign([Need("a", 0), Need("b", 2)], hosts) == [Slot(0, None), Slot(0, None)]
    assert assign([], hosts) == []


def test_lacks_of_an_accelerator_type_come_first() -> None:
    lines = lacks([Need("any", 9), Need("typed", 1, 0, "H100")], [Host("x", 4)])
    assert [line.split("'")[1] for line in lines] == ["typed", "any"]


def test_equal_lines_are_given_once() -> None:
    assert len(lacks([Need("a", 9), Need("a", 9)], [Host("x", 4)])) == 1


def test_needs_in_the_words_of_ray(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("students.a.resources.gpu=0.5", "students.a.replicas=2", "students.b.accelerator=T4")
    needs = needs_of(recipe)
    assert [need.student for need in needs] == ["a", "a", "b"], "in the order of the cohort's workers"
    assert [need.resources for need in needs] == [{"CPU": 1, "GPU": 0.5}] * 2 + [{"CPU": 1}]
    assert [need.label_selector for need in needs] == [{}, {}, {ACCELERATOR: "T4"}]
    assert needs_of(make_recipe())[0].resources == {"CPU": 1}, "no student needs a GPU"


def test_spares_reserve_what_the_different_students_do(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("students.a.replicas=2", "students.b.accelerator=T4", "failure.spares=2", MANY)
    spares = [Need("", 1, is_spare=True)] * 2 + [Need("", 1, 0, "T4", is_spare=True)] * 2
    assert reserved(recipe) == [*needs_of(recipe), *spares]
    assert spares_in_words(reserved(recipe)) == (
        "failure.spares: on Ray 4 more workers wait to take over (2 of CPU 1; 2 of CPU 1 on a host with T4)"
    )
    assert kinds_of(reserved(recipe)) == [[2, 0, 1, 5, 6, 3, 4]], "as they choose hosts"
    assert spares_in_words(needs_of(recipe)) == ""
    assert reserved(make_recipe()) == needs_of(make_recipe())


def test_what_lacks_room_is_the_spare(make_recipe: MakeRecipe) -> None:
    """The students choose their hosts first, whatever the spares ask for."""
    recipe = make_recipe("students.b.accelerator=T4", "students.b.resources.cpu=2", "failure.spares=1", MANY)
    hosts = [Host("x", 5, 0, {ACCELERATOR: "T4"})]
    (line,) = placement(reserved(recipe), hosts).failures
    assert line == (
        "failure.spares: no capacity left for a spare of CPU 1 beside the 3 others "
        "(x: CPU 5, T4); add a host, or lower failure.spares"
    )
    check = placement(reserved(recipe), [Host("x", 6, 0, {ACCELERATOR: "T4"})])
    assert not check.failures
    assert check.figure.startswith("2 workers and 2 spares, 1 hosts")


def test_spares_take_their_shares_of_a_gpu_too(make_recipe: MakeRecipe) -> None:
    automatic = ("students.a.resources.gpu=auto", "students.b.resources.gpu=auto", MANY)
    hosts = [Host("x", 4, 1)]
    assert [need.gpu for need in needs_of(make_recipe(*automatic), hosts)] == [0.5, 0.5]
    shared = reserved(make_recipe(*automatic, "failure.spares=1"), hosts)
    assert [need.gpu for need in shared] == [0.3333] * 3
