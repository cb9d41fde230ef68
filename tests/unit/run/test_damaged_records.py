"""run.json, manifests and metrics that are damaged: one line, or an older checkpoint; never a traceback."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cohorts import MakeRecipe
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.coordinator.roster import Absences
from kdcl_dist.errors import CheckpointError, RunFolderError, StudentLost
from kdcl_dist.run import checkpoint as C
from kdcl_dist.run.metrics import SCHEMA, read_metrics
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import (
    next_generation,
    past_failures,
    read_record,
    recorded_failure,
    update_record,
)
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder

CAUSE = StudentLost("gone", student="a", step=3).to_dict()
SCORES = {"loss": 1.0, "top1": 0.5, "top5": 1.0}
#: Every field that a run writes.
RECORD: dict[str, Any] = {
    "state": "failed",
    "owner": "r-1",
    "root": ".",
    "cause": CAUSE,
    "failures": {"run": "r-1", "causes": [CAUSE]},
    "generation": {"run": "r-1", "number": 2},
    "absences": [{"student": "a", "since": 1, "until": None, "state_of": None}],
    "spares": [{"student": "a", "at": "2026-11-30T10:00:00+00:00", "host": "10.0.0.1"}],
    "results": {"a": SCORES, "ensemble": SCORES},
    "versions": {"torch": "2.6"},
    "data": {"train": "0" * 64},
    "placement": {"a": {"host": "10.0.0.1", "pid": 7, "device": "cpu", "parameters": 9}},
    "classes": 4,
    "samples": 60,
}


def commit(folder: Folder, step: int, names: tuple[str, ...] = ("a", "b", "coordinator")) -> C.Manifest:
    parts = {name: C.write_part(folder, step, name, {"value": torch.tensor(step)}) for name in names}
    manifest = C.Manifest(step, parts)
    C.commit(folder, manifest)
    return manifest


@pytest.fixture
def run(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Run:
    """A run with checkpoints after 1 and 2 steps."""
    run = make_run(make_recipe(), "r")
    commit(run.folder, 1)
    commit(run.folder, 2)
    return run


def outcome(read: Callable[[], Any]) -> tuple[Any, str]:
    """What is read, or None and the text of its refusal."""
    try:
        return read(), ""
    except RunFolderError as error:
        return None, str(error)


def resume(run: Run, warn: Callable[[str], None]) -> Run:
    root, _, name = run.folder.uri.rpartition("/")
    return prepare(run.recipe, root, name, resume=True, warn=warn)


def manifest_path(run: Run, step: int = 2) -> Path:
    assert run.folder.local is not None
    return run.folder.local / f"checkpoints/step-{step:08d}/manifest.json"


@given(content=damaged(RECORD))
@settings(max_examples=300)
def test_a_record_is_usable_or_refused_in_one_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Folder(str(tmp_path_factory.getbasetemp() / "records"))
    folder.write("run.json", content)
    recipe = parse_recipe("{data: {train: a, test: b}, students: [{name: a, model: mlp}]}")
    run = Run(recipe, "r-1", folder, None, ".")
    record, refusal = outcome(lambda: read_record(folder))
    if record is None:
        assert re.fullmatch(r".*/run\.json is damaged \(.+\); delete it", refusal)
        return
    past_failures(run)
    recorded_failure(run)
    next_generation(run)
    Absences(["a"], record.get("absences", ())).rewind(None)
    update_record(folder, state="starting")
    assert read_record(folder)["state"] == "starting"


@pytest.mark.parametrize(
    "content", [b"[]", b"7", b"null", b"[" * 1000 + b"]" * 1000, b'{"generation": 1e999}']
)
def test_a_damaged_record_is_not_resumed(content: bytes, run: Run) -> None:
    run.folder.write("run.json", content)
    with pytest.raises(RunFolderError, match=r"run\.json is damaged .*; delete it"):
        resume(run, print)


def test_a_diverged_run_keeps_its_record_and_so_does_a_later_version(run: Run) -> None:
    update_record(run.folder, results={"a": SCORES | {"loss": float("nan")}}, later=[1, {"x": None}])
    found = read_record(run.folder)
    assert found["results"]["a"]["loss"] != found["results"]["a"]["loss"]
    assert found["later"] == [1, {"x": None}]


def test_a_folder_in_place_of_the_record(run: Run) -> None:
    run.folder.delete_file("run.json")
    run.folder.write("run.json/x", b"")
    with pytest.raises(RunFolderError, match=r"run\.json is not a regular file\); delete it"):
        resume(run, print)


def test_a_damaged_manifest_is_skipped_for_the_one_before(run: Run) -> None:
    path = manifest_path(run)
    whole = path.read_bytes()

    @given(content=damaged(json.loads(whole)))
    @settings(max_examples=200)
    def check(content: bytes) -> None:
        path.write_bytes(content)
        texts: list[str] = []
        found = C.latest(run.folder, texts.append)
        assert found is not None
        assert found.step == 2 or "step-00000002 is skipped" in texts[0]
        assert not any("\n" in text for text in texts)

    check()


@pytest.mark.parametrize("name", ["/a", "../step-00000001/a", "x/../a", "a\x00", ".", ""])
def test_a_part_is_never_a_path(name: str, run: Run) -> None:
    data = json.loads(manifest_path(run).read_bytes())
    data["parts"][name] = data["parts"]["a"]
    manifest_path(run).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="its manifest has a part"):
        C.whole(run.folder, 2)
    assert resume(run, lambda text: None).step == 1


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop", "dangling", "device"])
@pytest.mark.parametrize("name", ["a.pt", "manifest.json"])
def test_what_is_no_regular_file_is_no_part(kind: str, name: str, run: Run) -> None:
    path = manifest_path(run).with_name(name)
    path.unlink()
    targets = {"loop": path, "dangling": path.with_name("none"), "device": Path("/dev/zero")}
    if kind in targets:
        path.symlink_to(targets[kind])
    else:
        {"folder": Path.mkdir, "fifo": os.mkfifo}[kind](path)
    texts: list[str] = []
    assert resume(run, texts.append).step == 1
    assert "step-00000002 is skipped" in texts[0]


def test_a_manifest_without_a_student_is_resumed_with_a_warning(run: Run) -> None:
    commit(run.folder, 3, ("a", "coordinator"))
    texts: list[str] = []
    assert resume(run, texts.append).step == 3
    assert len(texts) == 1
    assert "student 'b' is not in checkpoints/step-00000003" in texts[0]


def test_a_manifest_without_the_coordinator_is_skipped(run: Run) -> None:
    commit(run.folder, 3, ("a", "b"))
    texts: list[str] = []
    assert resume(run, texts.append).step == 2
    assert "no part of the coordinator" in texts[0]


@pytest.mark.parametrize("content", [b"", b"x", b"\x80\x02]."])
def test_a_part_that_is_no_state(content: bytes, run: Run) -> None:
    manifest = commit(run.folder, 3)
    run.folder.write(f"{manifest.folder}/a.pt", content)
    part = replace(manifest.parts["a"], sha256=C.hashlib.sha256(content).hexdigest(), bytes=len(content))
    with pytest.raises(CheckpointError, match=r"a\.pt of checkpoints/step-00000003"):
        C.read_part(run.folder, C.Manifest(3, {"a": part}), "a")


ROW = {"student": "a", "epoch": 0, "step": 0, "split": "test", "name": "loss", "value": 1.0}


def _column(value: Any, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([value], kind)


@given(
    name=st.sampled_from(SCHEMA.names),
    column=st.sampled_from(
        [
            None,
            _column(None, pa.null()),
            _column(None, pa.string()),
            _column([1]),
            _column({"x": 1}),
            _column(b"\xff"),
            _column("x"),
            _column(2**62),
            _column(-1),
            _column(0.5),
            pa.Array.from_buffers(
                pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
            ),
        ]
    ),
)
@settings(max_examples=100)
def test_metrics_are_usable_or_refused_in_one_line(
    name: str, column: pa.Array | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Folder(str(tmp_path_factory.getbasetemp() / "metrics-files"))
    columns = {key: _column(value, SCHEMA.field(key).type) for key, value in ROW.items()}
    columns[name] = column
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({key: value for key, value in columns.items() if value is not None}), sink)
    folder.write("metrics/epoch-0000.parquet", bytes(sink.getvalue()))
    table, refusal = outcome(lambda: read_metrics(folder))
    if table is None:
        assert re.fullmatch(r".*metrics/epoch-0000\.parquet cannot be read \(.+\); delete it", refusal)
        return
    assert table.schema == SCHEMA
    table.to_pylist()
