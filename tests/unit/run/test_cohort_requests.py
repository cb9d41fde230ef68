"""Requests to change the cohort of a run that trains: what they make of its recipe; bad ones in a line."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cohorts import MakeRecipe

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import RecipeError, StorageError
from kdcl_dist.launch.preflight import rehearsal
from kdcl_dist.launch.preflight.rehearsal import Rehearsal
from kdcl_dist.run.checkpoint import Manifest, commit, write_part
from kdcl_dist.run.cohort_requests import (
    apply,
    as_begun,
    ask,
    begin,
    names_of,
    next_change,
    read,
    requested,
)
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import update_record
from kdcl_dist.run.run import Run, write_recipe
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.process import this_process


@pytest.fixture
def run(make_recipe: MakeRecipe, tmp_path: Path) -> Run:
    """A run of four epochs, two of which are done."""
    recipe = make_recipe("epochs=4", "students.b.schedule={name: cosine}")
    made = prepare(recipe, str(tmp_path / "runs"), "r", resume=False, warn=print)
    parts = {name: write_part(made.folder, 6, name, {}) for name in ("a", "b", "coordinator")}
    commit(made.folder, Manifest(6, parts, epoch=2))
    for epoch in range(2):
        made.folder.write(f"metrics/epoch-{epoch:04d}.parquet", b"")
    return made


def kdcl_cohort(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(kdcl, ["cohort", *arguments])
    return found.exit_code, found.output


def test_the_recipe_says_what_the_requests_made_of_it(run: Run) -> None:
    before = run.recipe
    ask(run.folder, {"add": {"name": "c", "model": "mlp"}})
    ask(run.folder, {"add": {"name": "a", "model": "mlp"}})
    ask(run.folder, {"remove": "b"})
    recipe = requested(before, run.folder, 2)
    a, b, c = recipe.students
    assert (a, c.from_epoch, c.until_epoch) == (before.students[0], 3, None)
    assert (b.until_epoch, recipe.epochs_of(b)) == (2, before.epochs_of(before.students[1]))
    with pytest.raises(RecipeError, match="more than once: a"):
        apply(before, read(run.folder, names_of(run.folder)[1]), 2)


def test_a_request_that_asks_for_both_adds(run: Run) -> None:
    ask(run.folder, {"add": {"name": "c", "model": "mlp"}, "remove": "b"})
    assert requested(run.recipe, run.folder, 2).names == ["a", "b", "c"]


def test_a_file_that_is_no_request_is_refused(run: Run) -> None:
    texts = [b"{", b"[]", b"{}", b'{"remove": 3}', b'{"add": {"name": 5}}']
    for number, text in enumerate(texts):
        run.folder.write(f"cohort/{number}.json", text)
    assert requested(run.recipe, run.folder, 2) == run.recipe
    for name in names_of(run.folder):
        with pytest.raises(RecipeError) as caught:
            apply(run.recipe, read(run.folder, name), 2)
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_holds_up_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Folder.read

    def refuse(self: Folder, name: str, limit: int | None = None) -> bytes:
        if name == "cohort/0.json":
            raise StorageError("no permission")
        return read(self, name, limit)

    ask(run.folder, {"remove": "b"})
    run.folder.write("cohort/0.json", b"")  # the first of both
    monkeypatch.setattr(Folder, "read", refuse)
    assert requested(run.recipe, run.folder, 2).students[1].until_epoch == 2


def test_a_change_that_the_storage_refuses_leaves_the_recipe_as_it_was(
    run: Run, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a resumed run would take it for begun, with checkpoints of the cohort before."""
    written, before = Folder.write, run.folder.read("recipe.yaml")

    def refuse(folder: Folder, name: str, data: bytes) -> None:
        if name == "run.json":
            raise StorageError("full")
        written(folder, name, data)

    monkeypatch.setattr(Folder, "write", refuse)
    with pytest.raises(StorageError, match="full"):
        begin(replace(run, recipe=make_recipe("epochs=5")), [])
    assert run.folder.read("recipe.yaml") == before


def test_a_file_in_the_place_of_their_folder_is_told(run: Run) -> None:
    run.folder.write("cohort", b"")
    with pytest.raises(StorageError, match="cohort is no folder; delete it"):
        names_of(run.folder)


def test_a_recipe_that_others_have_written_imports_nothing_new(run: Run, make_recipe: MakeRecipe) -> None:
    """A coordinator that replaces another takes the recipe of the folder, to which others may write."""
    write_recipe(run.folder, make_recipe("epochs=5"))
    update_record(run.folder, recipe_of=run.id)
    assert as_begun(run).recipe.epochs == 5
    write_recipe(run.folder, make_recipe("students.b.model=nets:Tiny"))
    with pytest.raises(RecipeError, match="changed while the run trains: 'nets:Tiny' is not among"):
        as_begun(run)


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
        ({"add": {"name": "c", "logits": "t.arrow"}}, 2, "logits: a file takes part in all epochs"),
        ({"remove": "x"}, 2, "no student is named 'x' (have a, b)"),
        ({"remove": "b"}, 4, "student 'b' cannot leave any more: epoch 4 is the last of the run"),
    ],
)
def test_what_does_not_fit_is_one_line(
    request_: dict[str, Any], epoch: int, message: str, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(RecipeError) as caught:
        apply(make_recipe("epochs=4"), request_, epoch)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_epoch_keeps_its_steps(make_recipe: MakeRecipe) -> None:
    """The student that sees most decides how many an epoch has, and the run's steps are counted already."""
    own = "students.{}.data={{share: [0, 0.5]}}".format
    alone = make_recipe("epochs=4", "distillation.window=epoch", own("a"), own("b"))
    for data in ({}, {"data": {"share": [0, 0.6]}}):
        with pytest.raises(RecipeError, match=r"students\.c\.data: all students of the run see their own"):
            apply(alone, {"add": {"name": "c", "model": "mlp", **data}}, 2)
    apply(alone, {"add": {"name": "c", "model": "mlp", "data": {"share": [0, 0.5]}}}, 2)
    beside = make_recipe("epochs=4", "distillation.window=epoch", own("a"))
    apply(beside, {"add": {"name": "c", "model": "mlp"}}, 2)


def test_nobody_leaves_twice(make_recipe: MakeRecipe) -> None:
    left = apply(make_recipe("epochs=4"), {"remove": "b"}, 2)
    with pytest.raises(RecipeError, match="student 'b' leaves after epoch 2 already"):
        apply(left, {"remove": "b"}, 2)


def test_the_cohort_changes_with_each_epoch_but_the_last(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("epochs=8", "checkpoint.every_epochs=3", "students.b.until_epoch=5")
    assert [next_change(recipe, done) for done in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(RecipeError, match="the run trains its last epoch, 8: the cohort cannot change any"):
        next_change(recipe, 7)


def test_who_is_not_there_cannot_leave(make_recipe: MakeRecipe) -> None:
    others = "{name: b, model: mlp, until_epoch: 1}, {name: c, model: mlp, from_epoch: 3}"
    others += ", {name: t, logits: t.arrow}"
    recipe = make_recipe("epochs=4", f"students=[{{name: a, model: mlp}}, {others}]")
    for name, why in (
        ("b", "student 'b' has left"),
        ("c", "student 'c' has not joined yet"),
        ("t", "is a file"),
    ):
        with pytest.raises(RecipeError, match=why):
            apply(recipe, {"remove": name}, 2)


def test_the_command_writes_requests(run: Run, tmp_path: Path) -> None:
    update_record(run.folder, state="running")
    student = tmp_path / "c.yaml"
    student.write_text("{name: c, model: mlp}")
    code, output = kdcl_cohort(run.folder.uri, "add", str(student), "--no-rehearsal")
    assert (code, output) == (0, "c joins at the end of an epoch, as soon as it is ready\n")
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
    student.write_text("{name: c, model: mlp}")
    assert not names_of(run.folder)
    assert kdcl_cohort(uri, "add", str(student), "--no-rehearsal")[0] == 0
    assert "names must differ" in refused(uri, "add", str(student), "--no-rehearsal")
    assert "student 'c' has not joined yet" in refused(uri, "remove", "c")
    assert kdcl_cohort(uri, "remove", "b")[0] == 0
    assert "student 'b' leaves after epoch 3 already" in refused(uri, "remove", "b")
    update_record(run.folder, launcher=of_a_dead_process())
    assert "does not train: its process has died" in refused(uri, "remove", "a")
    update_record(run.folder, state="finished")
    assert "does not train: it is finished" in refused(uri, "remove", "a")
    assert len(list(Path(uri, "cohort").iterdir())) == 2


def of_a_dead_process() -> str:
    """The identity of a process that has ended."""
    *kernel, _, start = this_process().split(" ")
    ended = subprocess.Popen(["true"])
    ended.wait()
    return " ".join((*kernel, str(ended.pid), start))


def test_the_rehearsal_runs_no_code_without_leave(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run folder may come from someone else. Relative paths are those of the run."""
    (tmp_path / "here").mkdir()
    recipe = make_recipe("epochs=4", "students.b.model=nets:Tiny")
    sets = {"train": "here/train.arrow", "test": "here/test.arrow"}
    for name, path in sets.items():
        Path(tmp_path, path).symlink_to(getattr(recipe.data, name))
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=sets)})
    run = prepare(recipe, str(tmp_path / "runs"), "r", resume=False, warn=print)
    update_record(run.folder, state="running", root=str(tmp_path))
    student = tmp_path / "c.yaml"
    student.write_text("{name: c, model: mlp}")
    found: list[Recipe] = []

    def rehearse(recipe: Recipe, index: int, *where: str) -> Rehearsal:
        found.append(recipe)
        return Rehearsal(recipe.names[index], "", problem=recipe.names[index])

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)
    code, output = kdcl_cohort(run.folder.uri, "add", str(student))
    assert (code, output.count("\n")) == (2, 1)
    assert "'nets:Tiny' would run code of the module 'nets'" in output
    assert not found
    code, output = kdcl_cohort(run.folder.uri, "add", str(student), "--allow-imports", "nets")
    assert (code, output) == (2, "kdcl: error: c\n")
    assert [found[0].data.train, found[0].data.test] == [str(tmp_path / path) for path in sets.values()]
