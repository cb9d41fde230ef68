"""Requests to change the cohort of a run that trains: what they make of its recipe; bad ones in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cohorts import MakeRecipe

from kdcl_dist.cli import kdcl
from kdcl_dist.errors import RecipeError, RunFolderError
from kdcl_dist.run.checkpoint import Manifest, commit, write_part
from kdcl_dist.run.cohort_requests import apply, ask, changed, has_requests, is_changing
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run, load_run


@pytest.fixture
def run(make_recipe: MakeRecipe, tmp_path: Path) -> Run:
    """A run of four epochs that has stopped after the second, as another cohort is asked for."""
    recipe = make_recipe("epochs=4", "students.b.schedule={name: cosine}")
    made = prepare(recipe, str(tmp_path / "runs"), "r", resume=False, warn=print)
    parts = {name: write_part(made.folder, 6, name, {}) for name in ("a", "b", "coordinator")}
    commit(made.folder, Manifest(6, parts, epoch=2))
    update_record(made.folder, state="changing")
    return made


def kdcl_cohort(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(kdcl, ["cohort", *arguments])
    return found.exit_code, found.output


def test_the_recipe_says_what_the_requests_made_of_it(run: Run) -> None:
    before = run.recipe
    assert not has_requests(run.folder)
    ask(run.folder, {"add": {"name": "c", "model": "mlp"}})
    ask(run.folder, {"add": {"name": "a", "model": "mlp"}})
    ask(run.folder, {"remove": "b"})
    assert has_requests(run.folder)
    assert is_changing(run)
    lines: list[str] = []
    new = changed(run, lines.append)
    assert lines[0] == "c joins after epoch 2"
    assert lines[1].startswith("a request to change the cohort is refused: ")
    assert "more than once: a" in lines[1]
    assert lines[2:] == ["b leaves after epoch 2"]
    assert new.start is not None
    assert (new.start.step, new.recipe) == (6, load_run(run.folder.uri)[0])
    a, b, c = new.recipe.students
    assert (a, c.from_epoch, c.until_epoch) == (before.students[0], 3, None)
    assert (b.until_epoch, new.recipe.epochs_of(b)) == (2, before.epochs_of(before.students[1]))
    assert not has_requests(run.folder)
    record = read_record(run.folder)
    assert (record["state"], record["owner"]) == ("starting", new.id)
    assert new.id != run.id


def test_a_file_that_is_no_request_is_refused(run: Run) -> None:
    texts = [b"{", b"[]", b"{}", b'{"remove": 3}', b'{"add": {"name": 5}}']
    for number, text in enumerate(texts):
        run.folder.write(f"cohort/{number}.json", text)
    lines: list[str] = []
    assert changed(run, lines.append).recipe == run.recipe
    assert len(lines) == len(texts)
    assert all("is refused: " in line and "\n" not in line for line in lines)


def test_without_a_checkpoint_no_run_goes_on(run: Run) -> None:
    run.folder.delete("checkpoints")
    with pytest.raises(RunFolderError, match="no complete checkpoint"):
        changed(run, print)


def test_a_frozen_student_leaves_as_well(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("epochs=4", "students.b.frozen=true", "students.b.weights=w")
    b = apply(recipe, {"remove": "b"}, 1).students[1]
    assert (b.until_epoch, b.epochs) == (1, None)


@pytest.mark.parametrize(
    ("request_", "epoch", "message"),
    [
        ({"add": {"name": "c", "model": "nets:Tiny"}}, 2, "'nets:Tiny' is not among the import strings"),
        (
            {"add": {"name": "c", "model": "http://a:1"}},
            2,
            "'http://a:1' is not among the import strings and servers",
        ),
        ({"add": {"name": "c"}}, 2, "students.2: a student needs one of model and logits"),
        ({"add": {"name": "c", "model": "mlp", "lr": 1}}, 2, "students.2.lr: unknown field here"),
        ({"add": {"name": "c", "model": "mlp", "from_epoch": 3}}, 2, "from_epoch: a student that is added"),
        ({"add": {"name": "c", "model": "mlp"}}, 4, "students.c.from_epoch: 5 is more than the run has"),
        ({"add": {"name": "B", "model": "mlp"}}, 2, "names must differ"),
        ({"remove": "x"}, 2, "no student is named 'x' (have a, b)"),
    ],
)
def test_what_does_not_fit_is_one_line(
    request_: dict[str, Any], epoch: int, message: str, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(RecipeError) as caught:
        apply(make_recipe("epochs=4"), request_, epoch)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_who_is_not_there_cannot_leave(make_recipe: MakeRecipe) -> None:
    others = "{name: b, model: mlp, until_epoch: 1}, {name: c, model: mlp, from_epoch: 3}"
    recipe = make_recipe("epochs=4", f"students=[{{name: a, model: mlp}}, {others}]")
    for name, why in (("b", "student 'b' has left"), ("c", "student 'c' has not joined yet")):
        with pytest.raises(RecipeError, match=why):
            apply(recipe, {"remove": name}, 2)


def test_the_command_writes_requests(run: Run, tmp_path: Path) -> None:
    update_record(run.folder, state="running")
    student = tmp_path / "c.yaml"
    student.write_text("{name: c, model: mlp}")
    code, output = kdcl_cohort(run.folder.uri, "add", str(student), "--no-rehearsal")
    assert (code, output) == (0, "c joins after the next checkpoint at an epoch's end\n")
    assert kdcl_cohort(run.folder.uri, "remove", "b")[0] == 0
    files = sorted(Path(run.folder.uri, "cohort").iterdir())
    found = [json.loads(path.read_text()) for path in files]
    assert found == [{"add": {"name": "c", "model": "mlp"}}, {"remove": "b"}]


def test_bad_commands_are_one_line_and_exit_code_2(run: Run, tmp_path: Path) -> None:
    update_record(run.folder, state="running")
    uri, student = run.folder.uri, tmp_path / "c.yaml"

    def refused(*arguments: str) -> str:
        code, output = kdcl_cohort(*arguments)
        assert code == 2
        assert output.count("\n") == 1
        return output

    assert "cannot be read" in refused(uri, "add", str(student))
    student.write_text("{name: c, model")
    assert "c.yaml" in refused(uri, "add", str(student))
    student.write_text("{name: a, model: mlp}")
    assert "names must differ" in refused(uri, "add", str(student))
    assert "no student is named 'x'" in refused(uri, "remove", "x")
    assert "is not a run folder" in refused(str(tmp_path / "none"), "remove", "a")
    update_record(run.folder, state="finished")
    assert "does not train: it is finished" in refused(uri, "remove", "a")
    assert not has_requests(run.folder)
