"""The rehearsal of students on this machine: in processes that may die, hang or raise anything."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cohorts import MakeRecipe

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.errors import DataError, KdclError, StartupTimeout
from kdcl_dist.launch.preflight.own_process import run_apart
from kdcl_dist.launch.preflight.rehearsal import Rehearsal, rehearsal, rehearse

# -- work in a process of its own ----------------------------------------------------------------------


def own_pid(offset: int) -> int:
    return os.getpid() + offset


def refuses() -> None:
    raise DataError("no such file")


def raises() -> None:
    raise ArithmeticError("a mistake\nof two lines")


def leaves() -> None:
    raise SystemExit("bye")


def ends() -> None:
    os._exit(3)


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cannot_be_sent() -> Callable[[], None]:
    return lambda: None


def hangs(*signals: int) -> None:
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)


def test_work_has_a_process_of_its_own() -> None:
    assert run_apart(200, "work", own_pid, 10) not in (os.getpid(), os.getpid() + 10)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (refuses, "no such file"),
        (raises, "ArithmeticError: a mistake"),
        (leaves, "SystemExit: bye"),
        (ends, "its process died (exit code 3)"),
        (is_killed, "its process died (killed by SIGKILL; out of memory, or killed by hand)"),
    ],
)
def test_every_end_of_the_work_is_an_error(work: Callable[[], Any], message: str) -> None:
    with pytest.raises(KdclError) as caught:
        run_apart(200, "work", work)
    assert caught.value.message == message


def test_a_result_that_cannot_be_sent_is_an_error() -> None:
    with pytest.raises(KdclError, match="pickle"):
        run_apart(200, "work", cannot_be_sent)


def test_work_that_hangs_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(StartupTimeout, match=r"no answer within 1 s \(limits.startup_s\)"):
        run_apart(1, "work", hangs, signal.SIGTERM)
    assert time.monotonic() - began < 200


def test_a_rehearsal_that_takes_too_long_is_a_finding(make_recipe: MakeRecipe) -> None:
    found = rehearse(make_recipe("students.b.model=nets:waits", "limits.startup_s=1"), 1, "cpu", "10.0.0.1")
    assert found == Rehearsal("b", "10.0.0.1", problem="no answer within 1 s (limits.startup_s)")


# -- the check -----------------------------------------------------------------------------------


def test_findings_are_listed_by_student_with_their_hosts() -> None:
    check = rehearsal(
        [
            Rehearsal("a", "one", problem="bad"),
            Rehearsal("b", "one"),
            Rehearsal("a", "two", problem="bad"),
            Rehearsal("b", "two", problem="worse"),
            Rehearsal("c", "three", skipped="no GPU"),
        ]
    )
    assert check.figure == "4 made on 2 hosts"
    assert check.failures == ["student 'a', hosts one, two: bad", "student 'b', host two: worse"]
    assert check.warnings == ["student 'c', host three: no GPU"]
    assert rehearsal([]).warnings


# -- the command ---------------------------------------------------------------------------------


def preflight(make_recipe: MakeRecipe, folder: Path, *overrides: str) -> tuple[int, list[str]]:
    """The exit code and the output of the local launcher's preflight."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump_recipe(make_recipe(*overrides)))
    options = ["--launcher", "local", "--storage", str(folder / "runs")]
    result = CliRunner().invoke(kdcl, ["preflight", str(recipe), *options])
    return result.exit_code, result.output.splitlines()


def test_each_student_that_cannot_train_is_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    more = [
        {"name": "c", "model": "nets:RaisesInTraining"},
        {"name": "d", "model": "nets:WrongClasses"},
        {"name": "e", "model": {"name": "nets:Deep", "dept": 2}},
        {"name": "f", "model": "nets:Tuples"},
    ]
    students = [{"name": "a", "model": "cnn_small"}, {"name": "b", "model": "nets:killed"}, *more]
    code, lines = preflight(make_recipe, tmp_path, f"students={students}")
    assert code == 2
    assert [line.split()[:2] for line in lines if not line.startswith("kdcl")][-1] == ["failed", "rehearsal"]
    found = [line for line in lines if line.startswith("kdcl: error: ")]
    where = "kdcl: error: rehearsal: student '{}', host 127.0.0.1: "
    assert found[0] == where.format("b") + (
        "its process died (killed by SIGKILL; out of memory, or killed by hand)"
    )
    assert found[1].startswith(
        where.format("c") + "model 'nets:RaisesInTraining' cannot take a training step"
    )
    assert found[2].startswith(where.format("d") + "model 'nets:WrongClasses' returns (2, 5) where")
    assert found[3].startswith(where.format("e") + "model 'nets:Deep' has no argument 'dept': did you mean")
    assert found[4].startswith(where.format("f") + "model 'nets:Tuples' returns tuple without logits: return")
    assert len(found) == 5


def test_a_data_set_that_ends_its_process_is_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    code, lines = preflight(make_recipe, tmp_path, "data.train=nets:dies")
    assert code == 2
    (line,) = [line for line in lines if line.startswith("kdcl: error: ")]
    assert line.startswith("kdcl: error: answers: host 127.0.0.1 cannot be inspected, data included: its")
    assert "exit code 5" in line
    assert "warning: rehearsal: mend the failures above first" in lines


def test_an_accelerator_that_nobody_looks_for_is_a_warning(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    code, lines = preflight(make_recipe, tmp_path, "students.b.accelerator=A100")
    assert code == 0
    assert lines[0].split()[:2] == ["warning", "placement"]
    assert "warning: placement: students.b.accelerator: 'A100' is not looked for by launcher 'local'" in (
        "\n".join(lines)
    )
