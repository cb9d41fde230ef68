"""Making the folder of a run, and finding the one to resume; no run is trained here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cohorts import MakeRecipe

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import KdclError, RecipeError, RunFolderError
from kdcl_dist.run import checkpoint
from kdcl_dist.run.prepare import prepare, resumed_recipe
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run, load_run, versions


def refuse(text: str) -> None:
    raise AssertionError(text)


def commit(run: Run, step: int, names: Sequence[str] | None = None) -> None:
    """A checkpoint of the coordinator and the students, or of `names`."""
    names = ["coordinator", *(run.recipe.names if names is None else names)]
    parts = {
        name: checkpoint.write_part(run.folder, step, name, {"step": torch.tensor(step)}) for name in names
    }
    checkpoint.commit(run.folder, checkpoint.Manifest(step, parts))


def test_a_new_folder_has_recipe_and_record(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    run = prepare(recipe, str(tmp_path / "runs"), "r", resume=False, warn=refuse)
    assert (run.name, run.step, run.start) == ("r", 0, None)
    assert run.root == str(Path.cwd())
    found, folder = load_run(str(tmp_path / "runs" / "r"))
    assert found == recipe
    header = folder.read("recipe.yaml").decode()
    assert all(f"# {name} {version}\n" in header for name, version in versions().items())
    record = read_record(folder)
    assert (record["state"], record["owner"], record["versions"]) == ("starting", run.id, versions())


def test_each_start_has_its_own_id(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first, second = (prepare(make_recipe(), str(tmp_path), None, resume=False, warn=refuse) for _ in range(2))
    assert first.name != second.name
    assert first.name.startswith("tiny-")
    assert first.number != second.number
    assert 0 <= first.number < 2**64


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "x" * 129])
def test_impossible_names(name: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="--name"):
        prepare(make_recipe(), str(tmp_path), name, resume=False, warn=refuse)


def test_a_folder_is_not_taken_twice(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    prepare(make_recipe(), str(tmp_path), "r", resume=False, warn=refuse)
    with pytest.raises(RunFolderError, match="exists: give another --name, or --resume"):
        prepare(make_recipe(), str(tmp_path), "r", resume=False, warn=refuse)
    with pytest.raises(RunFolderError, match="--storage is empty"):
        prepare(make_recipe(), " ", "r", resume=False, warn=refuse)
    with pytest.raises(RunFolderError, match="--storage '~nobody-of-this-name/runs': "):
        prepare(make_recipe(), "~nobody-of-this-name/runs", "r", resume=False, warn=refuse)


def test_the_latest_checkpoint_is_resumed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = prepare(make_recipe(), str(tmp_path), "r", resume=False, warn=refuse)
    with pytest.raises(RunFolderError, match="has no complete checkpoint"):
        prepare(make_recipe(), str(tmp_path), "r", resume=True, warn=refuse)
    for step in (3, 6):
        commit(first, step)
    (tmp_path / "r" / "run.json.123.tmp").write_bytes(b"half")
    run = prepare(make_recipe(), str(tmp_path), "r", resume=True, warn=refuse)
    assert run.step == 6
    assert read_record(run.folder)["owner"] == run.id != first.id
    assert not (tmp_path / "r" / "run.json.123.tmp").exists()
    (tmp_path / "r/checkpoints/step-00000006/coordinator.pt").write_bytes(b"damaged")
    texts: list[str] = []
    assert prepare(make_recipe(), str(tmp_path), "r", resume=True, warn=texts.append).step == 3
    assert "step-00000006 is skipped" in texts[0]


def test_without_a_name_the_latest_run_with_a_checkpoint_is_resumed(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match="no run of recipe 'tiny' with a checkpoint"):
        prepare(make_recipe(), str(tmp_path), None, resume=True, warn=refuse)
    names = [f"tiny-2026010{day}-000000-aaaa" for day in (1, 2, 3)] + ["other-20260104-000000-aaaa"]
    for name in names:
        made = prepare(make_recipe(), str(tmp_path), name, resume=False, warn=refuse)
        if name != names[2]:
            commit(made, 3)
    assert prepare(make_recipe(), str(tmp_path), None, resume=True, warn=refuse).name == names[1]


def test_another_recipe_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    commit(prepare(make_recipe(), str(tmp_path), "r", resume=False, warn=refuse), 3)
    with pytest.raises(RunFolderError, match="cannot be resumed with another recipe; it differs in epochs"):
        prepare(make_recipe("epochs=1"), str(tmp_path), "r", resume=True, warn=refuse)
    with pytest.raises(RunFolderError, match="cannot be resumed with another recipe; it differs in seed"):
        prepare(make_recipe("epochs=9", "seed=9"), str(tmp_path), "r", resume=True, warn=refuse)
    assert load_run(str(tmp_path / "r"))[0] == make_recipe()


def test_an_early_end_is_undone_by_another_rule(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    more = ("data.val_fraction=0.2", "early_stopping.metric=loss")
    recipe = make_recipe(*more, "early_stopping.patience=3")
    run = prepare(recipe, str(tmp_path), "r", resume=False, warn=refuse)
    commit(run, 6)
    results = {"a": {"loss": 1.0, "top1": 0.5, "top5": 1.0, "epoch": 2}}
    update_record(run.folder, state="finished", results=results, stopped_early="early stopping: why")
    prepare(recipe, str(tmp_path), "r", resume=True, warn=refuse)
    record = read_record(run.folder)
    assert (record["state"], record["results"], record["stopped_early"]) == (
        "finished",
        results,
        "early stopping: why",
    )
    longer = make_recipe(*more, "early_stopping.patience=4")
    prepare(longer, str(tmp_path), "r", resume=True, warn=refuse)
    record = read_record(run.folder)
    assert (record["state"], record["results"], record["stopped_early"]) == ("starting", None, None)
    assert "prolonged" not in record
    assert load_run(run.folder.uri)[0] == longer


def test_epochs_may_grow(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = prepare(make_recipe(), str(tmp_path), "r", resume=False, warn=refuse)
    commit(run, 6)
    update_record(run.folder, state="finished", results={"a": {"loss": 1.0, "top1": 0.5, "top5": 1.0}})
    recipe = make_recipe("epochs=9", "limits.step_s=77")
    again = prepare(recipe, str(tmp_path), "r", resume=True, warn=refuse)
    assert (again.step, again.recipe) == (6, recipe)
    assert load_run(again.folder.uri)[0] == make_recipe("epochs=9")
    record = read_record(again.folder)
    assert (record["state"], record["owner"], record["results"]) == ("starting", again.id, None)
    assert record["prolonged"] == [{"step": 6, "epochs_before": 2, "epochs": 9}]
    prepare(make_recipe("epochs=10"), str(tmp_path), "r", resume=True, warn=refuse)
    assert [entry["epochs"] for entry in read_record(run.folder)["prolonged"]] == [9, 10]


COSINE = "students.a.schedule={name: cosine}"


@pytest.mark.parametrize(
    "overrides",
    [
        ("students.a.schedule={name: constant, warmup_epochs: 1}",),
        ("students.a.schedule={milestones: [1]}",),
        (COSINE, "students.a.epochs=1"),
        (COSINE, "students.a.weights=w.pt", "distillation={method: teacher, teacher: a}"),
    ],
)
def test_schedules_that_do_not_depend_on_the_epochs(
    overrides: Sequence[str], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    commit(prepare(make_recipe(*overrides), str(tmp_path), "r", resume=False, warn=refuse), 3)
    longer = make_recipe(*overrides, "epochs=3")
    assert prepare(longer, str(tmp_path), "r", resume=True, warn=refuse).recipe == longer


@pytest.mark.parametrize("schedule", ["cosine", "poly", "onecycle", "nets:own_schedule"])
def test_a_schedule_that_depends_on_the_epochs_refuses_more(
    schedule: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    own = f"students.a.schedule={{name: '{schedule}'}}"
    commit(prepare(make_recipe(own), str(tmp_path), "r", resume=False, warn=refuse), 3)
    bound = rf"rate of a \(schedule '{schedule}'\) depends .* start a new run"
    for epochs, words in ((3, bound), (1, "for more epochs, not")):
        with pytest.raises(RunFolderError, match=f"differs in epochs: 2 -> {epochs} .*{words}"):
            prepare(make_recipe(own, f"epochs={epochs}"), str(tmp_path), "r", resume=True, warn=refuse)
    assert load_run(str(tmp_path / "r"))[0].epochs == 2


def test_a_finished_run_stays_finished(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = prepare(make_recipe(), str(tmp_path), "r", resume=False, warn=refuse)
    commit(run, 6)
    update_record(run.folder, state="finished")
    again = prepare(make_recipe(), str(tmp_path), "r", resume=True, warn=refuse)
    assert (read_record(again.folder)["state"], read_record(again.folder)["owner"]) == ("finished", run.id)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, RunFolderError),
        (b"\xff\xfe", RunFolderError),
        (b"epochs: [", RecipeError),
        (b"surprise: 1", RecipeError),
    ],
)
def test_what_is_no_run_folder(content: bytes | None, error: type[KdclError], tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(error, match=re.escape(str(tmp_path))) as caught:
        load_run(str(tmp_path))
    assert "\n" not in str(caught.value)


def resumed(make_recipe: MakeRecipe, tmp_path: Path, *overrides: str, digest: str = "file") -> Recipe:
    """The recipe with which the run r resumes."""
    return resumed_recipe(make_recipe(*overrides), digest, overrides, str(tmp_path), "r")


def begin(make_recipe: MakeRecipe, tmp_path: Path, *overrides: str, digest: str | None = "file") -> Recipe:
    """Begin the run r with overrides, up to a checkpoint; returns its recipe."""
    recipe = make_recipe(*overrides)
    commit(prepare(recipe, str(tmp_path), "r", resume=False, warn=refuse, recipe_file=digest), 3)
    return recipe


AT_START = ("epochs=9", "limits.step_s=77", "students.a.optimizer.lr=0.5")


def test_a_resumed_run_needs_no_override_of_its_start(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = begin(make_recipe, tmp_path, *AT_START)
    for overrides in ((), AT_START, AT_START[:1]):
        found = resumed(make_recipe, tmp_path, *overrides)
        assert found == recipe
        assert prepare(found, str(tmp_path), "r", resume=True, warn=refuse).step == 3
    found = resumed(make_recipe, tmp_path, "limits.step_s=99")
    assert (found.epochs, found.limits.step_s) == (9, 99)


def test_an_override_that_contradicts_the_start_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    begin(make_recipe, tmp_path, *AT_START)
    found = resumed(make_recipe, tmp_path, "epochs=8")
    with pytest.raises(
        RunFolderError,
        match=r"it differs in epochs: 9 -> 8 \(a run may go on for more epochs, not for fewer\)$",
    ):
        prepare(found, str(tmp_path), "r", resume=True, warn=refuse)


@pytest.mark.parametrize(("at_start", "now"), [("file", "other"), (None, "file")])
def test_with_a_changed_or_unknown_file_the_file_counts(
    at_start: str | None, now: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    begin(make_recipe, tmp_path, "epochs=9", digest=at_start)
    assert resumed(make_recipe, tmp_path, digest=now) == make_recipe()


def test_a_run_of_0_1_0_keeps_the_devices_that_it_stored(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Its default was the CPU; a recipe that states a share of a GPU, or `auto`, is taken at its word."""
    on_cpu = ("students.a.resources.gpu=0", "students.b.resources.gpu=0")
    recipe = begin(make_recipe, tmp_path, *on_cpu, digest=None)
    assert resumed(make_recipe, tmp_path) == recipe
    for stated in ("auto", "1"):
        wanted = make_recipe(f"students.a.resources.gpu={stated}", on_cpu[1])
        assert resumed(make_recipe, tmp_path, f"students.a.resources.gpu={stated}") == wanted


def test_a_removed_student_may_be_removed_again(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = begin(make_recipe, tmp_path, "students.a=null")
    assert resumed(make_recipe, tmp_path) == recipe
    assert resumed(make_recipe, tmp_path, "students.a=null") == recipe


def test_a_stored_recipe_imports_nothing_that_the_file_does_not(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = begin(make_recipe, tmp_path, "students.a.model=nets:Dropout")
    assert resumed(make_recipe, tmp_path) == make_recipe()
    assert resumed(make_recipe, tmp_path, "students.a.model=nets:Dropout") == recipe


@pytest.mark.parametrize("name", ["none", "../r", "", "a\0b"])
def test_without_a_folder_the_file_counts(name: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    assert resumed_recipe(make_recipe(), "file", (), str(tmp_path), name) == make_recipe()
