"""Checkpoints: whole or not at all, recognised when damaged, resumed bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cohorts import Cohort, MakeRecipe, assert_same, weights

from kdcl_dist.errors import CheckpointError, RunFolderError
from kdcl_dist.run import checkpoint as C
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

MakeRun = Callable[..., Run]


def save(folder: Folder, step: int) -> C.Manifest:
    parts = {
        name: C.write_part(folder, step, name, {"value": torch.tensor(step)}) for name in ("a", "coordinator")
    }
    manifest = C.Manifest(step, parts)
    C.commit(folder, manifest)
    return manifest


def test_round_trip_and_retention(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for step in (3, 10, 200):
        save(folder, step)
    assert C.latest(folder, print).step == 200
    assert C.read_part(folder, C.latest(folder, print), "a")["value"] == 200
    C.prune(folder, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000200"]


@pytest.mark.parametrize("part", ["a.pt", "coordinator.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty"])
def test_a_damaged_one_is_skipped_for_the_one_before(tmp_path: Path, part: str, damage: str) -> None:
    folder = Folder(str(tmp_path))
    save(folder, 1)
    save(folder, 2)
    path = tmp_path / "checkpoints" / "step-00000002" / part
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-5], "flip": flipped, "empty": b""}[damage])
    notes: list[str] = []
    assert C.latest(folder, notes.append).step == 1
    assert len(notes) == 1
    assert "step-00000002" in notes[0]


def test_a_crash_at_any_byte_leaves_the_one_before(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    save(folder, 1)
    save(folder, 2)
    for name in ("manifest.json", "coordinator.pt", "a.pt"):  # as they are written, the last first
        path = tmp_path / "checkpoints" / "step-00000002" / name
        content = path.read_bytes()
        for cut in range(0, len(content), 1 if name == "manifest.json" else 37):
            path.write_bytes(content[:cut])
            assert C.latest(folder, lambda text: None).step == 1, f"{name}, {cut} bytes"
        path.unlink()
        assert C.latest(folder, lambda text: None).step == 1


def test_what_is_half_deleted_is_no_checkpoint_and_the_last_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    for step in (1, 2, 3):
        save(folder, step)

    def dies(self: Folder, path: str) -> None:
        raise OSError("the process ends here")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", dies)
        with pytest.raises(OSError, match="ends here"):
            C.prune(folder, keep=1)
    assert not (tmp_path / "checkpoints/step-00000001/manifest.json").exists()
    assert C.latest(folder, print).step == 3
    C.prune(folder, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_part_is_carried_over_with_its_own_step(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    manifest = save(folder, 1)
    for step in (2, 3):
        part = C.copy_part(folder, manifest, step, "a")
        manifest = C.Manifest(step, {"a": part})
        C.commit(folder, manifest)
        assert C.latest(folder, print) == manifest
        assert (part.step, C.read_part(folder, manifest, "a")["value"]) == (1, 1)


def test_parts_without_manifest_do_not_count(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    C.write_part(folder, 5, "a", {})
    assert C.latest(folder, lambda text: None) is None


def test_nothing_in_a_part_is_executed(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return Path.touch, (ran,)

    manifest = save(folder, 1)
    path = tmp_path / manifest.folder / "a.pt"
    torch.save({"model": Hostile()}, path)
    content = path.read_bytes()
    part = C.Part(hashlib.sha256(content).hexdigest(), len(content))
    C.commit(folder, C.Manifest(1, {**manifest.parts, "a": part}))
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        C.read_part(folder, C.latest(folder, print), "a")
    assert not ran.exists()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("method", ["linear", "general"])
def test_stopped_and_resumed_equals_never_stopped(
    steps: int, method: str, make_recipe: MakeRecipe, make_run: MakeRun
) -> None:
    recipe = make_recipe(
        f"distillation.method={method}", "data.holdout_per_class=3", "checkpoint.keep=9", "batch_size=12"
    )
    whole = Cohort(make_run(recipe)).train()
    assert not whole.errors
    asked = iter(range(10**6))
    # The coordinator asks once a round at which the run may stop.
    stopped = Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= steps)
    assert not stopped.errors
    assert set(stopped.finished.values()) == {False}
    assert read_record(stopped.run.folder)["state"] == "interrupted"
    resumed = Cohort(make_run(recipe, "r", resume=True)).train()
    assert not resumed.errors
    assert set(resumed.finished.values()) == {True}
    for name in recipe.names:
        assert_same(weights(whole.run.folder, 8, name), weights(resumed.run.folder, 8, name))
    assert read_record(whole.run.folder)["results"] == read_record(resumed.run.folder)["results"]
    drop = ["data_s", "forward_s", "wait_s", "exchange_s", "backward_s", "step_s", "ensemble_s"]
    tables = [read_metrics(run.folder).to_pandas() for run in (whole.run, resumed.run)]
    keys = ["student", "epoch", "step", "split", "name"]
    left, right = (t[~t.name.isin(drop)].sort_values(keys).reset_index(drop=True) for t in tables)
    assert left.equals(right)


def test_a_resumed_run_must_be_the_same(make_recipe: MakeRecipe, make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing to resume"):
        make_run(make_recipe(), "r", resume=True)
    run = Cohort(make_run(make_recipe(), "r")).train().run
    with pytest.raises(RunFolderError, match=r"seed: 0 -> 1"):
        make_run(make_recipe("seed=1"), "r", resume=True)
    with pytest.raises(RunFolderError, match=r"students\.1\.name"):
        make_run(make_recipe("students.b.name=other"), "r", resume=True)
    with pytest.raises(RunFolderError, match="exists"):
        make_run(make_recipe(), "r")
    make_run(make_recipe("limits.step_s=9"), "r", resume=True)
    manifest = json.loads(run.folder.read("checkpoints/step-00000006/manifest.json"))
    assert manifest["parts"].keys() == {"a", "b", "coordinator"}


def test_other_data_is_refused_on_resume(
    make_recipe: MakeRecipe, make_run: MakeRun, data: dict[str, str], tmp_path: Path
) -> None:
    from conftest import write_images

    path = tmp_path / "own.arrow"
    write_images(path, 60, seed=1)
    recipe = make_recipe(f"data.train={path}", "epochs=3")
    asked = iter(range(10**6))
    Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) >= 3)
    write_images(path, 60, seed=9)
    cohort = Cohort(make_run(recipe, "r", resume=True)).train()
    assert all(isinstance(error, RunFolderError) for error in cohort.errors.values())
    assert "other data" in str(cohort.errors["coordinator"])


def test_two_runs_are_identical_and_another_seed_is_not(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    one, two, other = (Cohort(make_run(make_recipe(f"seed={seed}"))).train().run for seed in (0, 0, 1))
    for name in ("a", "b"):
        assert_same(weights(one.folder, 3, name), weights(two.folder, 3, name))
    differing = weights(other.folder, 3, "b")
    assert not torch.equal(weights(one.folder, 3, "b")["layers.2.weight"], differing["layers.2.weight"])


def test_a_part_loads_into_the_plain_network(make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    from kdcl_dist import models

    run = Cohort(make_run(make_recipe())).train().run
    network = models.build("cnn_small", 4, 1)
    network.load_state_dict(weights(run.folder, 6, "a"), strict=True)
