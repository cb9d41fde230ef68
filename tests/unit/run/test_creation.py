"""Taking a name for a new run: one start gets it, and nobody deletes what is not his."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cohorts import ROOT, MakeRecipe

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import RunFolderError
from kdcl_dist.run import checkpoint
from kdcl_dist.run.creation import abandon
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run, load_run
from kdcl_dist.run.storage import Folder
from kdcl_dist.utils.process import is_dead, this_process

FORK = multiprocessing.get_context("fork")


def refuse(text: str) -> None:
    raise AssertionError(text)


def start(recipe: Recipe, storage: Path, name: str | None = "r", warn: Callable[[str], None] = refuse) -> Run:
    return prepare(recipe, str(storage), name, resume=False, warn=warn)


def starts_at_once(recipe: Recipe, storage: str, name: str | None, count: int) -> list[tuple[str, str]]:
    """(run id, "") of each start that got a name, ("", error) of each other; each start is a process."""
    ready, results, over = FORK.Barrier(count), FORK.SimpleQueue(), FORK.Event()

    def work() -> None:
        try:
            ready.wait(60)
            results.put((prepare(recipe, storage, name, resume=False, warn=print).id, ""))
        except RunFolderError as error:
            results.put(("", str(error)))
        except BaseException as error:
            results.put(("", f"unexpected: {error!r}"))
        over.wait(60)  # the name of a process that has ended would be free

    processes = [FORK.Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    over.set()
    for process in processes:
        process.join(60)
    return found


def slow(monkeypatch: pytest.MonkeyPatch, longest_s: float) -> None:
    """Let every operation of a storage take some time, before and after it has its effect."""
    operate = Folder._try

    def delayed(self: Folder, *arguments: Any) -> Any:
        draw = random.Random()
        time.sleep(draw.uniform(0, longest_s))
        try:
            return operate(self, *arguments)
        finally:
            time.sleep(draw.uniform(0, longest_s))

    monkeypatch.setattr(Folder, "_try", delayed)


@pytest.mark.parametrize(("count", "longest_s"), [(2, 0.0), (3, 0.0), (8, 0.0), (3, 0.1)])
def test_of_starts_at_once_one_gets_the_name(
    count: int, longest_s: float, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if longest_s:
        slow(monkeypatch, longest_s)
    found = starts_at_once(make_recipe(), str(tmp_path), "r", count)
    owners = [owner for owner, _ in found if owner]
    assert len(owners) == 1, found
    record = read_record(Folder(str(tmp_path / "r")))
    assert (record["owner"], record["state"]) == (owners[0], "starting")
    assert load_run(str(tmp_path / "r"))[0] == make_recipe()
    for _, error in found:
        assert not error or "/r' exists: give another --name" in error
    assert [path.name for path in tmp_path.iterdir()] == ["r"]  # no claim is left


def test_automatic_names_differ(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    found = starts_at_once(make_recipe(), str(tmp_path), None, 4)
    assert len({owner for owner, _ in found if owner}) == 4, found
    assert len(list(tmp_path.iterdir())) == 4


def test_an_automatic_name_that_is_taken_is_not_given_again(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = iter(["aaaa", "1" * 12, "aaaa", "2" * 12, "bbbb", "3" * 12])
    drawn = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=next(draws)))
    monkeypatch.setattr("kdcl_dist.run.creation.uuid", drawn)
    at_once = SimpleNamespace(now=lambda: datetime(2026, 1, 1))
    monkeypatch.setattr("kdcl_dist.run.creation.datetime", at_once)
    names = [start(make_recipe(), tmp_path, None).name for _ in range(2)]
    assert names == ["tiny-20260101-000000-aaaa", "tiny-20260101-000000-bbbb"]


def commit(run: Run) -> None:
    parts = {
        name: checkpoint.write_part(run.folder, 3, name, {"step": torch.tensor(3)})
        for name in ("coordinator", *run.recipe.names)
    }
    checkpoint.commit(run.folder, checkpoint.Manifest(3, parts))


@pytest.mark.parametrize(("state", "how"), [("failed", "failed"), ("interrupted", "was interrupted")])
def test_the_name_of_a_run_that_ended_before_its_first_checkpoint_is_free(
    state: str, how: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    first = start(make_recipe(), tmp_path)
    update_record(first.folder, state=state, classes=77)
    first.folder.write("metrics/epoch-0007.parquet", b"")
    first.folder.write("checkpoints/step-00000003/a.pt", b"")
    first.folder.write("cohort/1.json", b"{}")
    first.folder.write("notes.txt", b"of the user")
    warnings: list[str] = []
    second = start(make_recipe("epochs=9"), tmp_path, warn=warnings.append)
    assert warnings == [f"run 'r' {how} before its first checkpoint: it begins anew"]
    assert load_run(second.folder.uri)[0].epochs == 9
    record = read_record(second.folder)
    assert (record["owner"], record["state"]) == (second.id, "starting")
    assert "classes" not in record
    assert second.folder.names() == ["notes.txt", "recipe.yaml", "run.json"]


def test_the_name_of_a_run_that_was_killed_is_free(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    ((owner, error),) = starts_at_once(make_recipe(), str(tmp_path), "r", 1)
    assert not error
    assert read_record(Folder(str(tmp_path / "r")))["owner"] == owner  # its process has ended
    warnings: list[str] = []
    assert start(make_recipe(), tmp_path, warn=warnings.append).id != owner
    assert warnings == ["run 'r' died before its first checkpoint: it begins anew"]


@pytest.mark.parametrize("state", ["failed", "interrupted", "starting", "running", "finished"])
def test_a_name_with_a_checkpoint_is_kept(state: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = start(make_recipe(), tmp_path)
    update_record(first.folder, state=state)
    commit(first)
    for _ in range(2):
        with pytest.raises(
            RunFolderError, match=r"/r' exists: give another --name, or --resume to continue it$"
        ):
            start(make_recipe(), tmp_path)
        first.folder.delete_file("recipe.yaml")  # someone's mistake
        first.folder.delete_file("run.json")
    assert checkpoint.latest(first.folder, refuse) is not None


@pytest.mark.parametrize("launcher", ["", "another host 12 34"])
def test_a_run_whose_process_may_live_is_kept(launcher: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = start(make_recipe(), tmp_path)
    update_record(first.folder, state="running", launcher=launcher)
    with pytest.raises(RunFolderError, match="if its run has ended, delete the folder"):
        start(make_recipe(), tmp_path)


def test_what_is_in_the_way(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "r").write_text("a file")
    with pytest.raises(RunFolderError, match="run 'r' cannot be made: ") as caught:
        start(make_recipe(), tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "r2").mkdir()
    (tmp_path / "r2" / "recipe.yaml").write_text("of someone")
    with pytest.raises(RunFolderError, match="exists"):
        start(make_recipe(), tmp_path, "r2")
    assert [path.name for path in (tmp_path / "r2").iterdir()] == ["recipe.yaml"]


def test_an_abandoned_start_leaves_nothing_of_its_own(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    abandon(start(make_recipe(), tmp_path))
    assert not list(tmp_path.iterdir())
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("of the user")
    abandon(start(make_recipe(), tmp_path))
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["notes.txt"]


def test_an_abandoned_start_deletes_nothing_of_another(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = start(make_recipe(), tmp_path)
    others = [replace(first, id="other")]
    commit(first)
    others.append(first)
    for run in others:
        abandon(run)
        assert first.folder.names() == ["checkpoints", "recipe.yaml", "run.json"]
    (tmp_path / "r" / "run.json").unlink()
    first.folder.delete("checkpoints")
    abandon(first)  # nothing tells whose the folder is
    assert first.folder.names() == ["recipe.yaml"]


def test_a_process_is_known_to_be_dead_only_when_it_is() -> None:
    code = "from kdcl_dist.utils.process import this_process; print(this_process(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        identity = child.stdout.readline().strip()
        assert not is_dead(identity)
        kernel, _, start_tick = identity.rpartition(" ")
        assert is_dead(f"{kernel} {int(start_tick) - 1}")  # the pid is another's now
        child.kill()
        child.wait(60)
    assert is_dead(identity)
    assert not is_dead(this_process())
    boot, *rest = identity.split()
    for unknown in (
        "",
        "a b c d",
        " ".join(("0", *rest)),
        f"{boot} pid:[1] 1 1",
        f"{boot} {rest[0]} {10**30} 1",
    ):
        assert not is_dead(unknown)
