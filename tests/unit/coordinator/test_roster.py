"""The roster: who takes part, who is waited for, where a generation begins; and the log of absences."""

from __future__ import annotations

from typing import Any

import pytest

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.coordinator.roster import Absences, Roster
from kdcl_dist.run.checkpoint import Manifest, Part

#: `b` has two replicas, so the ranks are a: 0, b: 1 and 2, c: 3.
COHORT = "{name: a, model: mlp}, {name: b, model: mlp, replicas: 2}, {name: c, model: mlp}"


def roster(*overrides: str, cohort: str = COHORT) -> Roster:
    return Roster(parse_recipe(f"data: {{train: x, test: x}}\nstudents: [{cohort}]", overrides))


def at(step: int, kind: Kind = Kind.TRAIN, part: int = 0) -> Round:
    return Round(kind, 0, step, part)


# -- students and ranks --------------------------------------------------------------------------


def test_ranks_are_those_of_all_replicas() -> None:
    found = roster()
    assert [found.ranks([index]) for index in found.students] == [[0], [1, 2], [3]]
    assert found.ranks({2, 1}) == [1, 2, 3]
    assert found.ranks([]) == []


@pytest.mark.parametrize(
    ("ranks", "students"),
    [([], []), ([0, 1, 3], [0, 2]), ([1, 2], [1]), ([0, 1, 2, 3], [0, 1, 2])],
)
def test_a_student_is_complete_with_all_its_workers(ranks: list[int], students: list[int]) -> None:
    assert roster().complete(ranks) == students


@pytest.mark.parametrize(
    ("names", "students"),
    [
        ({"a"}, {0}),
        ({"b/1"}, {1}),
        ({"b"}, {1}),
        ({"c", "b/0"}, {1, 2}),
        ({None}, set()),
        ({"coordinator", None}, set()),
    ],
)
def test_a_failure_names_a_student_or_a_worker(names: set[str | None], students: set[int]) -> None:
    assert roster().named(names) == students


# -- whom the next generation needs --------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "away", "awaited"),
    [
        ([], set(), [0, 1, 2, 3]),
        (["failure.min_students=2"], {1}, [0, 3]),
        (["failure.min_students=3"], {1}, [0, 1, 2, 3]),
        (["failure.min_students=1"], {0, 1}, [3]),
        (["failure.min_students=1"], {0, 1, 2}, [0, 1, 2, 3]),
        (["failure.min_students=9"], set(), [0, 1, 2, 3]),
        (["failure.min_students=9"], {0}, [0, 1, 2, 3]),
        (["failure.min_students=3", "failure.policy=stop"], {0, 1}, [3]),
    ],
)
def test_enough_students_do_not_wait_for_the_others(
    overrides: list[str], away: set[int], awaited: list[int]
) -> None:
    found = roster(*overrides)
    found.remove(away)
    assert found.awaited() == awaited
    enough = len(away) < 3 and found.ranks(set(found.students) - away) == awaited
    assert found.has_quorum() is enough


def test_no_generation_without_the_teacher() -> None:
    cohort = COHORT.replace("{name: a, model: mlp}", "{name: a, model: mlp, weights: w}")
    found = roster("distillation={method: teacher, teacher: a}", "failure.min_students=1", cohort=cohort)
    found.remove([1, 2])
    assert found.awaited() == [0]
    found.clear()
    found.remove([0])
    assert not found.has_quorum()
    assert found.awaited() == [0, 1, 2, 3]


def test_one_of_two_teachers_suffices() -> None:
    cohort = COHORT.replace("{name: a, model: mlp}", "{name: a, model: mlp, weights: w}")
    cohort = cohort.replace("{name: c, model: mlp}", "{name: c, model: mlp, weights: w}")
    method = "distillation={method: teacher, teacher: {a: 1, c: 2}}"
    found = roster(method, "failure.min_students=1", cohort=cohort)
    found.remove([0])
    assert found.has_quorum()
    found.remove([2])
    assert not found.has_quorum()


def test_students_leave_and_come_back() -> None:
    found = roster("failure.min_students=1")
    found.remove([0, 1])
    assert (found.away, found.failed) == ({0, 1}, {0, 1})
    found.enter([0, 2])
    assert (found.away, found.failed) == ({1}, {1})
    found.remove([2])
    assert (found.away, found.failed) == ({1, 2}, {1, 2})
    found.clear()
    assert (found.away, found.failed) == (set(), set())


# -- where a generation begins -------------------------------------------------------------------

ALL = [0, 1, 2]


@pytest.mark.parametrize(
    ("present", "positions", "own", "expected"),
    [
        # All stand at the same round; a student had the answer that the others missed; a new student.
        (ALL, [at(4)] * 4, at(4), (at(4), [])),
        (ALL, [at(5), at(4), at(4), at(4)], at(4), (at(5), [])),
        (ALL, [at(5), at(5), at(5), None], at(4), (at(5), [2])),
        # Only the coordinator has done the round: none of the students had the answer.
        (ALL, [at(4)] * 4, at(6, Kind.CHECKPOINT), (at(6, Kind.CHECKPOINT), [])),
        # Replicas differ by a step, or one is new: the student is restored, and its rounds do not count.
        (ALL, [at(4), at(5), at(4), at(4)], at(4), (at(4), [1])),
        (ALL, [at(4), at(4), None, at(4)], at(4), (at(4), [1])),
        # A step whose parts are not all done begins anew, also where its replicas stand at different parts.
        (ALL, [at(4, part=3)] * 4, at(4, part=2), (at(4), [])),
        (ALL, [at(4, part=3), at(4, part=2), at(4, part=3), at(4)], at(4, part=2), (at(4), [])),
        (ALL, [at(5), at(4, part=3), at(4, part=3), at(5)], at(4, part=3), (at(5), [])),
        # All are new to a coordinator that has a state.
        (ALL, [None] * 4, at(4), (at(4), [0, 1, 2])),
        # A student that is absent has no position.
        ([0, 2], [at(5), None, None, at(4)], at(4), (at(5), [])),
        # A pass over test samples begins again at its first batch.
        (ALL, [at(6, Kind.EVALUATE, 2)] * 4, at(6, Kind.EVALUATE, 1), (at(6, Kind.EVALUATE), [])),
        (ALL, [at(6, Kind.EVALUATE)] * 4, at(6, Kind.EVALUATE, 3), (at(6, Kind.EVALUATE), [])),
    ],
)
def test_a_generation_begins_at_the_latest_round(
    present: list[int], positions: list[Round | None], own: Round, expected: tuple[Round, list[int]]
) -> None:
    found = roster()
    given = {rank: positions[rank] for rank in found.ranks(present)}
    assert found.resume(present, given, own) == expected


def test_a_student_that_failed_is_restored_and_its_round_does_not_count() -> None:
    found = roster("failure.min_students=1")
    found.remove([0])
    positions: dict[int, Round | None] = {0: at(7), 1: at(4), 2: at(4), 3: at(4)}
    assert found.resume(ALL, positions, at(4)) == (at(4), [0])
    found.enter(ALL)
    assert found.resume(ALL, positions, at(4)) == (at(7), [])


# -- the log of absences -------------------------------------------------------------------------


def test_absences_are_noted_once() -> None:
    log = Absences(["a", "b"])
    old = Manifest(9, {"a": Part("", 0), "b": Part("", 0, step=6)})
    assert log.note([0, 1], [], 0, None) == []
    assert log.note([0], [], 10, old) == ["b is away from step 10 on"]
    assert log.note([0], [], 12, old) == []
    assert log.note([0, 1], [1], 15, old) == ["b is back at step 15, with its state of step 6"]
    assert log.note([0, 1], [0], 16, old) == ["a is back at step 16, with its state of step 9"]
    assert log.note([1], [], 20, None) == ["a is away from step 20 on"]
    assert log.note([0, 1], [0], 21, None) == ["a is back at step 21, with its state of step 0"]
    assert [(a["student"], a["since"], a["until"], a["state_of"]) for a in log.found] == [
        ("b", 10, 15, 6),
        ("a", 16, 16, 9),
        ("a", 20, 21, 0),
    ]


def test_absences_before_a_checkpoint_stay_when_all_go_back_to_it() -> None:
    def absence(student: str, since: int, until: int | None, state_of: int | None) -> dict[str, Any]:
        return {"student": student, "since": since, "until": until, "state_of": state_of}

    past, open_, later = absence("a", 3, 5, 0), absence("b", 7, None, None), absence("a", 9, 11, 6)
    log = Absences(["a", "b"], [past, open_, later])
    log.rewind(Manifest(9, {"a": Part("", 0), "b": Part("", 0, step=6)}))
    assert log.found == [past, absence("b", 7, 9, 6)]
    log.rewind(None)
    assert log.found == []


def test_the_roster_continues_the_log_of_the_record() -> None:
    recorded = [{"student": "b", "since": 4, "until": None, "state_of": None}]
    found = Roster(roster().recipe, recorded)
    assert found.absences.note([0, 1, 2], [1], 8, None) == ["b is back at step 8, with its state of step 0"]
    assert recorded[0]["until"] is None, "the record's own list is not changed"


# -- stored logits -------------------------------------------------------------------------------


def test_a_file_of_logits_is_always_there_and_never_enough() -> None:
    cohort = "{name: t, logits: t.arrow}, {name: a, model: mlp}, {name: b, model: mlp}"
    found = roster("failure={policy: continue, min_students: 1}", cohort=cohort)
    assert found.awaited() == [0, 1]
    assert found.complete([1]) == [0, 2]
    assert found.resume([0, 1, 2], {0: at(4), 1: at(5)}, at(5)) == (at(5), [])
    found.remove({1})
    assert found.has_quorum()
    assert found.awaited() == [1]
    found.remove({2})
    assert not found.has_quorum()
    assert found.awaited() == [0, 1]


def test_a_file_of_logits_is_none_of_the_students_that_must_be_left() -> None:
    cohort = "{name: t, logits: t.arrow}, {name: a, model: mlp}, {name: b, model: mlp}, {name: c, model: mlp}"
    found = roster("failure={policy: continue, min_students: 2}", cohort=cohort)
    found.remove({1})
    assert found.has_quorum()
    found.remove({2})
    assert not found.has_quorum()
