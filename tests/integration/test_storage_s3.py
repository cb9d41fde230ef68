"""Runs on S3: a real server, and one that fails for a moment or for good."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3
import torch
from click.testing import CliRunner
from cohorts import Cohort, Inject, MakeRecipe, assert_same, recipe_text

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.errors import CheckpointError, RunFolderError, StorageError
from kdcl_dist.launch import local
from kdcl_dist.run import uris
from kdcl_dist.run.checkpoint import latest, read_part
from kdcl_dist.run.events import EpochEnded, Event, Note, Warned
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run, load_run
from kdcl_dist.run.storage import Folder

MakeRun = Callable[..., Run]
#: Figures that are measured and not computed.
MEASURED = ["data_s", "forward_s", "wait_s", "exchange_s", "backward_s", "step_s", "load_s", "ensemble_s"]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3.server() as port:
        s3.make_bucket(port, "bucket")
        yield port


@pytest.fixture(scope="module")
def here(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The run in a folder of this machine."""
    folder = tmp_path_factory.mktemp("runs")
    run = prepare(parse_recipe(recipe_text(data)), str(folder), "here", resume=False, warn=print)
    assert not Cohort(run).train().errors
    return run.folder


@pytest.fixture
def proxy(port: int) -> Iterator[s3.Proxy]:
    with s3.Proxy(port) as made:
        yield made


def folder_of(port: int, limit_s: float = 2.0) -> Folder:
    return Folder(s3.uri(port, f"bucket/{uuid.uuid4().hex}"), limit_s)


def start(recipe: Recipe, port: int, name: str, *, resume: bool = False) -> Run:
    return prepare(recipe, s3.uri(port, "bucket/runs"), name, resume=resume, warn=print)


def network(folder: Folder, name: str) -> dict[str, torch.Tensor]:
    """A student's network in the latest checkpoint."""
    manifest = latest(folder, print)
    assert manifest is not None
    model: dict[str, torch.Tensor] = read_part(folder, manifest, name)["model"]
    return model


def same_runs(left: Folder, right: Folder) -> None:
    for name in ("a", "b"):
        assert_same(network(left, name), network(right, name))
    keys = ["student", "epoch", "step", "split", "name"]
    tables = [read_metrics(folder).to_pandas() for folder in (left, right)]
    one, two = (t[~t.name.isin(MEASURED)].sort_values(keys).reset_index(drop=True) for t in tables)
    assert one.equals(two)
    assert read_record(left)["results"] == read_record(right)["results"]


def test_files_come_and_go(port: int) -> None:
    folder = folder_of(port) / "deep"
    assert folder.names() == []
    folder.write("one", b"abc")
    folder.write("one", b"abcd")
    (folder / "below").write("two", b"")
    assert folder.read("one") == b"abcd"
    assert (folder.size("one"), folder.size("below/two"), folder.size("three")) == (4, 0, -1)
    assert folder.names() == ["below", "one"]
    assert folder.exists("below")
    folder.delete_file("one")
    folder.delete_file("one")
    folder.delete("below")
    assert not folder.exists("below/two")
    with pytest.raises(FileNotFoundError):
        folder.read("one")
    folder.check_writable()
    assert folder.uri.endswith(f"/deep?endpoint_override=127.0.0.1:{port}&region=us-east-1&scheme=http")
    assert str(folder).startswith("s3://***@bucket/")
    assert "secret" not in str(folder)


def test_a_student_is_exported_from_there(port: int, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = start(make_recipe("epochs=1"), port, "arm-seed0")
    assert not Cohort(run).train().errors
    arguments = ["--student", "a", "--last", "--to", str(tmp_path / "x")]
    result = CliRunner().invoke(kdcl, ["export", run.folder.uri, *arguments])
    assert result.exit_code == 0, result.output
    assert_same(torch.load(tmp_path / "x" / "model.pt", weights_only=True), network(run.folder, "a"))
    assert "secret" not in (tmp_path / "x" / "README.md").read_text()


def test_what_cannot_work_is_refused_at_once(port: int, proxy: s3.Proxy) -> None:
    began = time.monotonic()
    with pytest.raises(RunFolderError, match=r"s3://.*nosuch/runs.*make the bucket") as caught:
        Folder(s3.uri(port, "nosuch/runs"), 250.0).check_writable()
    assert "secret" not in str(caught.value)
    proxy.rule = lambda method, path: 403
    with pytest.raises(RunFolderError, match="credentials"):
        Folder(s3.uri(proxy.port, "bucket/runs"), 250.0).check_writable()
    with pytest.raises(RunFolderError, match="bogus"):
        Folder("s3://bucket/x?bogus=1")
    assert time.monotonic() - began < 120


@pytest.mark.parametrize("fault", ["cut", 503, 429])
def test_a_storage_that_comes_back_is_not_noticed(proxy: s3.Proxy, fault: str | int) -> None:
    folder = folder_of(proxy.port, limit_s=20)
    faults = iter([fault] * 3)
    proxy.rule = lambda method, path: next(faults, None)
    folder.write("one", b"abc")
    assert folder.read("one") == b"abc"
    assert len(proxy.seen) > 4


def test_a_storage_that_stays_away_is_named_with_the_tries(proxy: s3.Proxy) -> None:
    folder = folder_of(proxy.port, limit_s=1.0)
    proxy.rule = lambda method, path: 503
    with pytest.raises(StorageError, match=r"one cannot be written to s3://.*bucket.*tried \d times in") as e:
        folder.write("one", b"abc")
    assert "\n" not in str(e.value)
    proxy.rule = lambda method, path: None
    assert not folder.exists("one")


def test_a_storage_that_hangs_is_given_up(proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uris, "ANSWER_S", 1.0)
    folder = folder_of(proxy.port, limit_s=1.0)
    proxy.rule = lambda method, path: 280.0
    began = time.monotonic()
    with pytest.raises(StorageError, match="cannot be written"):
        folder.write("one", b"abc")
    assert time.monotonic() - began < 120


def test_a_cloud_storage_that_is_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uris, "ANSWER_S", 0.5)
    began = time.monotonic()
    with pytest.raises(RunFolderError, match=r"gs://anonymous@bucket/runs.* tried \d times"):
        Folder("gs://anonymous@bucket/runs?endpoint_override=127.0.0.1:1&scheme=http", 0.5).check_writable()
    assert time.monotonic() - began < 120


@pytest.mark.parametrize("part", [2, None])
def test_a_large_file_is_whole_or_not_there(port: int, proxy: s3.Proxy, part: int | None) -> None:
    folder = folder_of(proxy.port, limit_s=0.5)
    data, failing = bytes(range(256)) * 100_000, f"partNumber={part}&" if part else "uploadId="
    folder.write("old", data)
    proxy.rule = lambda method, path: (
        503 if failing in path and method == ("PUT" if part else "POST") else None
    )
    for name in ("old", "new"):
        with pytest.raises(StorageError):
            folder.write(name, data[::-1])
    proxy.rule = lambda method, path: None
    assert folder.read("old") == data
    assert not folder.exists("new")
    folder.write("new", data)
    assert folder.read("new") == data


def test_a_whole_run_stopped_resumed_and_evaluated(
    inject: Inject, make_recipe: MakeRecipe, here: Folder, port: int
) -> None:
    recipe = make_recipe()
    stop = threading.Event()
    inject("coordinator", "checkpoint", 3, "hold", until="stop")

    def on_event(event: Event) -> None:
        if isinstance(event, EpochEnded):
            stop.set()

    run = start(recipe, port, "whole")
    assert not local.launch(run, on_event, stop)
    again = start(recipe, port, "whole", resume=True)
    assert again.step == 3
    assert local.launch(again, print, threading.Event())
    same_runs(here, run.folder)
    assert run.folder.names("tensorboard") == ["a", "b", "ensemble"]
    result = CliRunner().invoke(kdcl, ["evaluate", run.folder.uri])
    assert result.exit_code == 0, result.output
    assert f"{100 * read_record(run.folder)['results']['a']['top1']:.2f}" in result.output


@pytest.mark.parametrize("count", [2, 5])
def test_of_starts_at_once_one_gets_the_name(
    make_recipe: MakeRecipe, port: int, proxy: s3.Proxy, count: int
) -> None:
    recipe, name = make_recipe(), uuid.uuid4().hex
    delays = itertools.cycle([None, 0.3, None, 0.05, 0.5, None, 0.1])
    proxy.rule = lambda method, path: next(delays)

    def begin(number: int) -> str:
        """The id of a start that gets the name, or the error of one that does not."""
        try:
            return start(recipe, proxy.port, name).id
        except RunFolderError as error:
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(begin, range(count)))
    assert sum("exists: give another --name" in text for text in found) == count - 1, found
    root = Folder(s3.uri(port, "bucket/runs"))
    assert read_record(root / name)["owner"] in found
    assert load_run((root / name).uri)[0] == recipe
    assert not [file for file in root.names() if file.startswith(".claim")]


def test_training_survives_a_bad_connection(make_recipe: MakeRecipe, here: Folder, proxy: s3.Proxy) -> None:
    recipe = make_recipe("limits.step_s=60", "limits.storage_s=20")
    faults = itertools.cycle([None, "cut", None, None, 503, 0.3])
    proxy.rule = lambda method, path: next(faults)
    there = Cohort(start(recipe, proxy.port, "bad")).train()
    assert not there.errors
    proxy.rule = lambda method, path: None
    same_runs(here, there.run.folder)


@pytest.mark.parametrize("file", ["b.pt", "coordinator.pt", "manifest.json"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    make_recipe: MakeRecipe, here: Folder, proxy: s3.Proxy, file: str
) -> None:
    recipe = make_recipe("limits.storage_s=1")
    name = f"lasting-{file}"
    proxy.rule = lambda method, path: 503 if method == "PUT" and f"step-00000006/{file}" in path else None
    cohort = Cohort(start(recipe, proxy.port, name)).train()
    assert cohort.errors.keys() == {"a", "b", "coordinator"}
    for error in cohort.errors.values():
        assert isinstance(error, CheckpointError), error
        assert f"{file} cannot be written to s3://***@bucket/runs/{name}: tried" in str(error)
        assert "the last checkpoint stays" in str(error)
    proxy.rule = lambda method, path: None
    assert read_record(cohort.run.folder)["state"] == "failed"
    resumed = start(recipe, proxy.port, name, resume=True)
    assert resumed.step == 3
    assert not Cohort(resumed).train().errors
    same_runs(here, resumed.folder)


def test_metrics_wait_for_the_storage(
    make_recipe: MakeRecipe, make_run: MakeRun, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcl_dist.coordinator.folder_care.BRIEF_S", 0.3)
    recipe = make_recipe("limits.storage_s=1", "epochs=3")
    here = Cohort(make_run(recipe, "here")).train()
    second = threading.Event()

    def out_in_the_first_two_epochs(method: str, path: str) -> int | None:
        if "step-00000006/manifest.json" in path:
            second.set()
        away = method == "PUT" and ("/metrics/" in path or "/tensorboard/" in path)
        return 503 if away and not second.is_set() else None

    proxy.rule = out_in_the_first_two_epochs
    cohort = Cohort(start(recipe, proxy.port, "waits")).train()
    assert not cohort.errors
    notes = [event.text for event in cohort.events if isinstance(event, Note | Warned)]
    assert len(notes) == 2
    assert all("metrics/epoch-0000.parquet cannot be written" in note for note in notes)
    same_runs(here.run.folder, cohort.run.folder)
    assert len(cohort.run.folder.names("tensorboard/a")) == 3


def test_unwritten_metrics_travel_in_the_checkpoint(
    make_recipe: MakeRecipe, here: Folder, proxy: s3.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcl_dist.coordinator.folder_care.BRIEF_S", 0.3)
    recipe = make_recipe("limits.storage_s=1")
    proxy.rule = lambda method, path: 503 if method == "PUT" and "/metrics/" in path else None
    cohort = Cohort(start(recipe, proxy.port, "travel")).train()
    for error in cohort.errors.values():
        assert isinstance(error, StorageError)
        assert "the training is complete and saved: --resume" in str(error)
    assert cohort.errors.keys() == {"a", "b", "coordinator"}
    proxy.rule = lambda method, path: None
    resumed = start(recipe, proxy.port, "travel", resume=True)
    assert resumed.step == 6
    assert not Cohort(resumed).train().errors
    assert read_record(resumed.folder)["state"] == "finished"
    same_runs(here, resumed.folder)
