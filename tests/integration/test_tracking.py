"""Whole runs and their trackers: real servers, real processes, and trackers in every kind of trouble."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3
import trackers
from cohorts import Cohort, Inject, MakeRecipe, assert_same, train, weights
from tracking_servers import await_answer, mlflow_server, read_wandb, tensorboard

from kdcl_dist.config.tracking import MLflow
from kdcl_dist.run.events import Note, Warned
from kdcl_dist.run.metrics import MetricsTable, read_metrics
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder
from kdcl_dist.tracking import tracking
from kdcl_dist.tracking.channel import Channel
from kdcl_dist.tracking.mlflow_run import MLflowRun
from kdcl_dist.tracking.tracker import TrackedRun

#: Figures that are the same each time; the parts of a step in seconds are not.
FIGURES = ("train/loss/a", "train/lr/b", "test/top1/ensemble", "test/loss/b", "analysis/linear_loss/ensemble")
Series = list[tuple[int, float]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server of MLflow, which answers after `await_answer`."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as port:
        yield port


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    # Telemetry of the clients, a key that may nowhere be shown, and no pauses between attempts.
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def recorded(folder: Folder, figure: str) -> Series:
    """A figure in the run folder's tables, at the steps done."""
    split, name, student = figure.split("/")
    rows = read_metrics(folder).to_pylist()
    found = [row for row in rows if (row["split"], row["name"], row["student"]) == (split, name, student)]
    return [(row["step"] + (split in ("train", "analysis")), row["value"]) for row in found]


def test_trackers_that_are_away_slow_or_broken_change_nothing(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FINISH_S", 0.5)
    alone, beside = make_run(make_recipe("tracking=[]")), "'trackers:Fails', 'trackers:Hangs', mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pass-word@127.0.0.1:9")  # nobody listens there
    among = make_run(make_recipe(f"tracking=[{beside}, 'trackers:raises_when_made']"))
    assert not Cohort(alone).train().errors
    cohort = Cohort(among).train()
    try:
        assert not cohort.errors
        for name in ("a", "b"):
            assert_same(weights(alone.folder, 6, name), weights(among.folder, 6, name))
        assert not alone.folder.exists("tensorboard")
        texts = [event.text for event in cohort.events if isinstance(event, Warned | Note)]
        for name in ("trackers:Fails", "trackers:Hangs", "mlflow", "trackers:raises_when_made"):
            of_it = [text for text in texts if text.startswith(f"tracking: {name} ")]
            assert [("fails" in text or "left behind" in text) for text in of_it] == [True, False], texts
            assert of_it[1].endswith("has 0 of 2 recorded epochs")
        assert "pass-word" not in "".join(texts)
    finally:
        trackers.RELEASED.set()
        for thread in threading.enumerate():
            if thread.name.startswith("kdcl-tracker"):
                thread.join(60)
        trackers.RELEASED.clear()


def test_all_trackers_over_a_killed_coordinator_and_a_resumption(
    make_recipe: MakeRecipe,
    make_run: Callable[..., Run],
    inject: Inject,
    server: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"http://127.0.0.1:{server}"
    items = f"tensorboard, csv, {{name: wandb, project: p}}, {{name: mlflow, uri: '{url}', experiment: e}}"
    fields = [
        f"tracking=[{items}]",
        "failure.max_failures=1",
        "checkpoint.every_epochs=2",
        "limits.step_s=140",
    ]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "200")
    await_answer(f"{url}/health")
    first = make_run(make_recipe(*fields), "r")
    folder = Path(str(first.folder.local))
    # Each coordinator goes on once its trackers have begun, and the first is killed when MLflow has an epoch:
    # then all go back to the beginning.
    begun = [folder / f"begun-{number}" for number in range(3)]
    inject("coordinator", "gather", 4, "hold", until=begun[0])
    killed = inject("coordinator", "gather", 5, "kill")
    inject("coordinator", "gather", 4, "hold", until=begun[1], after=killed)
    inject("coordinator", "gather", 7, "hold", until=begun[2])
    watch = threading.Thread(target=watch_trackers, args=[folder, begun, killed])
    watch.start()
    events = train(first)
    recipe = make_recipe(*fields, "epochs=3")
    events += train(run := make_run(recipe, "r", resume=True))
    watch.join()
    assert not [event for event in events if isinstance(event, Warned)]
    expected = {figure: recorded(run.folder, figure) for figure in FIGURES}
    assert [len(series) for series in expected.values()] == [9, 9, 3, 3, 1]
    check_mlflow(url, expected, recipe.students[0].optimizer.lr)
    check_wandb(folder, expected)
    check_tensorboard(folder / "tensorboard", expected)
    check_csv(folder / "metrics.csv", expected)
    for file in folder.rglob("*"):
        assert not file.is_file() or b"0123456789abcdef0123456789abcdef" not in file.read_bytes(), file


def watch_trackers(folder: Path, begun: list[Path], killed: Path) -> None:
    """Make each of the files `begun` once the trackers of that coordinator have started."""
    note, mark = folder / "tracking" / "mlflow.json", 0.0
    wait_for(lambda: note.exists() and json.loads(note.read_text())["epochs"] == 1)
    for number, file in enumerate(begun):
        wait_for(lambda: len(list(folder.glob("wandb/offline-run-*/files/recipe.yaml"))) == number + 1)  # noqa: B023
        wait_for(lambda: note.stat().st_mtime > mark)  # noqa: B023
        file.touch()
        if number == 0:
            wait_for(killed.exists)
            mark = killed.stat().st_mtime
        elif number == 1:
            wait_for(lambda: json.loads((folder / "tracking" / "wandb.json").read_text())["epochs"] == 2)
            mark = time.time()


def check_mlflow(url: str, expected: dict[str, Series], lr: float) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(url)
    (found,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert (found.info.run_name, found.info.status) == ("r", "FINISHED")
    assert found.data.params["students.a.optimizer.lr"] == str(lr)
    assert found.data.params["epochs"] == "2"  # those of the beginning: a server lets none change
    for figure, series in expected.items():
        history = client.get_metric_history(found.info.run_id, figure)
        assert sorted((metric.step, metric.value) for metric in history) == series, figure
    text = await_answer(f"{url}/get-artifact?path=recipe.yaml&run_uuid={found.info.run_id}")
    assert "epochs: 3\n" in text


def check_wandb(folder: Path, expected: dict[str, Series]) -> None:
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 3  # of both coordinators, and of the resumed run
    assert len({file.name for file in files}) == 1  # the id is in it
    read = [read_wandb(file) for file in files]
    assert [config["students.b.optimizer.lr"] for config, _ in read[1:]] == [0.05, 0.05]
    # What the killed coordinator's process of wandb had may be lost, so that the next one gets it again.
    rows = [(step, values) for _, history in read[1:] for step, values in history]
    for figure, series in expected.items():
        assert [(step, values[figure]) for step, values in rows if figure in values] == series, figure
    assert "batch_size: 16" in (files[-1].parent / "files" / "recipe.yaml").read_text()


def check_tensorboard(folder: Path, expected: dict[str, Series]) -> None:
    with tensorboard(folder) as url:
        await_answer(f"{url}/data/runs", lambda text: sorted(json.loads(text)) == ["a", "b", "ensemble"])
        for figure, series in expected.items():
            split, name, student = figure.split("/")
            query = f"{url}/data/plugin/scalars/scalars?run={student}&tag={split}%2F{name}"
            points = json.loads(await_answer(query, lambda text: len(json.loads(text)) > 0))
            assert [(step, pytest.approx(value)) for _, step, value in points] == series, figure


def check_csv(file: Path, expected: dict[str, Series]) -> None:
    with file.open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    found = [(int(row["step"]), float(row["test/top1"])) for row in lines if row["student"] == "ensemble"]
    assert [(step, pytest.approx(value)) for step, value in found] == expected["test/top1/ensemble"]
    losses = [value for _, value in expected["train/loss/a"]]
    means = [float(row["train/loss"]) for row in lines if row["student"] == "a"]
    assert means == [pytest.approx(sum(losses[i : i + 3]) / 3) for i in (0, 3, 6)]


def test_a_server_of_mlflow_comes_and_goes(server: int, tmp_path: Path) -> None:
    """Each outage costs one warning at most; every point is there once; a deleted run is begun anew."""
    from mlflow import MlflowClient

    folder, events = Folder(str(tmp_path / "r")), []  # type: ignore[var-annotated]
    told = TrackedRun("mine", "group", None, folder, "a: 1\n", {"a": "x" * 9000})

    def channel(url: str) -> Channel:
        return Channel("mlflow", lambda: MLflowRun(MLflow(uri=url)), told, 1, events.append)

    await_answer(f"http://127.0.0.1:{server}/health")
    away: dict[str, Any] = {"runs/log-batch": 503, "mlflow-artifacts": "cut"}
    with s3.Proxy(server, lambda method, path: next((away[p] for p in away if p in path), None)) as proxy:
        line = channel(f"http://127.0.0.1:{proxy.port}")
        record(line, folder, 0)
        wait_for(lambda: line.warned)
        record(line, folder, 1)
        del away["runs/log-batch"]
        record(line, folder, 2)
        wait_for(lambda: line.passed == 3)
        line.close("interrupted")
        line.join(60)
    client = MlflowClient(f"http://127.0.0.1:{server}")
    (run,) = client.search_runs([client.get_experiment_by_name("group").experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.tags["kdcl_dist.recipe"] == "a: 1\n"  # the artifacts were away throughout
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss/a")] == [
        (step + 1, float(step)) for step in range(3 * STEPS)
    ]
    assert [type(event) for event in events] == [Warned]
    # A process that is killed may have sent an epoch of which the note does not tell.
    folder.write("tracking/mlflow.json", json.dumps({"id": run.info.run_id, "epochs": 2}).encode())
    record(line, folder, 2, more=0.5)  # the next process records it anew, with other figures
    line = channel(f"http://127.0.0.1:{server}")
    wait_for(lambda: line.passed == 3)
    line.close("failed")
    line.join(60)
    assert len(client.get_metric_history(run.info.run_id, "train/loss/a")) == 3 * STEPS
    assert client.get_run(run.info.run_id).info.status == "FAILED"
    client.delete_run(run.info.run_id)
    again = channel(f"http://127.0.0.1:{server}")
    record(again, folder, 3)
    again.close("finished")
    again.join(60)
    (other,) = client.search_runs([run.info.experiment_id])
    assert other.info.run_id != run.info.run_id
    assert len(events) == 1


#: Steps of an epoch, more than one request takes.
STEPS = 1001


def record(line: Channel, folder: Folder, epoch: int, more: float = 0.0) -> None:
    table = MetricsTable(folder)
    for step in range(epoch * STEPS, (epoch + 1) * STEPS):
        table.add("a", epoch, step, "train", {"loss": step + more})
    table.end_epoch(epoch)
    table.flush(1)
    line.recorded_until(epoch + 1)


def wait_for(condition: Callable[[], bool]) -> None:
    ended = threading.Event()
    for _ in range(1200):
        if condition():
            return
        ended.wait(0.1)
    raise AssertionError("in vain")
