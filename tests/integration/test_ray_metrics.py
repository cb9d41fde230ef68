"""A run as its cluster shows it: Ray's metrics, process titles and imports, and the Grafana dashboard."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from cohorts import ROOT, write_images
from imported import NOTES, never, noted
from ray._private import state
from rays import own_ray

from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.launch.ray import driver as on_ray
from kdcl_dist.launch.ray.metrics import PROGRESS, TEST, TRAIN, VAL, RayMetrics
from kdcl_dist.run.events import EpochEnded, Event, Note, Started, Stepped, Warned
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder

DASHBOARD = ROOT / "cluster/grafana/kdcl.json"
#: Seconds after a run within which the coordinator's last values must be offered.
OFFERED_S = 120.0
Samples = dict[str, dict[tuple[str, str], float]]


@dataclass
class Watched:
    """What was seen of a run: metrics by name, run and student; process titles; actors; members' imports."""

    events: list[Event]
    metrics: Samples
    titles: set[str]
    actors: set[str]
    imports: dict[str, set[str]]
    record: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A short run on a Ray that offers its metrics."""
    folder, notes = tmp_path_factory.mktemp("watched"), tmp_path_factory.mktemp("notes")
    train, test = write_images(folder / "a", 60, seed=1), write_images(folder / "b", 22, seed=2)
    recipe = parse_recipe(f"""
        epochs: 2
        batch_size: 16
        distillation: {{method: linear}}
        data: {{train: {train}, test: {test}}}
        students: [{{name: a, model: cnn_small}}, {{name: b, model: mlp}}]
        tracking: [csv, {{name: "trackers:Environment", variable: KDCL_TEST_KEY}}]
    """)
    run = prepare(recipe, str(folder), "seen", resume=False, warn=print)
    events: list[Event] = []
    titles: set[str] = set()

    def collect_titles() -> None:
        while not scraper.ended.wait(0.1):
            titles.update(process_titles())

    with pytest.MonkeyPatch.context() as patch:
        # A GPU that Ray believes in, and that PyTorch does not find.
        patch.setenv("CUDA_VISIBLE_DEVICES", "63")
        patch.setenv("KDCL_TEST_KEY", "of the cluster")  # this process has it only now
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # instead of ten seconds
        patch.setenv("KDCL_TEST_IMPORTS", str(notes))
        patch.setenv("PYTHONPATH", str(NOTES), prepend=os.pathsep)
        own_ray(2, num_gpus=1, metrics=True)
    scraper = Scraper(ray.nodes()[0]["MetricsExportPort"])
    scraper.start()
    collecting = threading.Thread(target=collect_titles)
    collecting.start()
    try:
        assert on_ray.launch(run, events.append, threading.Event())
        (*_, ended) = (event for event in events if isinstance(event, EpochEnded))
        metrics = scraper.finish(ended)
        actors = {actor["ActorClassName"] for actor in state.actors().values()}
    finally:
        scraper.ended.set()
        scraper.join()
        collecting.join()
        ray.shutdown()
    return Watched(events, metrics, titles, actors, noted(notes), read_record(run.folder), folder / "seen")


def test_students_share_the_gpu_or_say_that_pytorch_cannot_use_it(watched: Watched) -> None:
    assert Note("resources.gpu auto: 0.5 of a GPU each for a, b") in watched.events
    (warning,) = (event.text for event in watched.events if isinstance(event, Warned))
    assert warning == "a, b: on the CPU, since PyTorch cannot use the GPU that Ray reserves"
    assert {place["device"] for place in watched.record["placement"].values()} == {"cpu"}


def test_trackers_have_the_environment_of_the_cluster(watched: Watched) -> None:
    points = len(read_metrics(Folder(str(watched.folder))))
    assert (watched.folder / "noted").read_text() == f"of the cluster finished {points}"
    lines = (watched.folder / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3  # of epochs and students
    assert not (watched.folder / "tensorboard").exists()


def process_titles() -> set[str]:
    titles = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            titles.add(path.read_text().split("\0")[0].strip())
            titles.add((path.parent / "comm").read_text().strip())
    return titles


class Scraper(threading.Thread):
    """Asks Ray every second for what it offers to Prometheus, and keeps the latest value of each metric."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.metrics = port, Samples()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1.0):
            with suppress(OSError):  # not there yet
                for metric, found in samples(self.port).items():
                    self.metrics.setdefault(metric, {}).update(found)

    def finish(self, ended: EpochEnded) -> Samples:
        """All values, once those of the last epoch are among them; Ray reports one metric after another."""
        deadline = time.monotonic() + OFFERED_S
        while not is_last(self.metrics, ended):
            assert time.monotonic() < deadline, self.metrics
            time.sleep(0.2)
        return self.metrics


def is_last(metrics: Samples, ended: EpochEnded) -> bool:
    """Whether the values are those at the end of the last epoch."""
    if not metrics.keys() >= {*TRAIN, *TEST, *PROGRESS}:
        return False
    of_epoch = [(name, TRAIN[name][0], ended.train) for name in TRAIN]
    of_epoch += [(name, TEST[name][0], ended.test) for name in TEST]
    return set(metrics["kdcl_epoch"].values()) == {ended.epoch + 1} and all(
        value == pytest.approx(values[student][key])
        for metric, key, values in of_epoch
        for (_, student), value in metrics[metric].items()
    )


def samples(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found: Samples = {}
    for name, tags, value in re.findall(r"^ray_(kdcl_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        tag = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        found.setdefault(name, {})[tag["run"], tag["student"]] = float(value)
    return found


def test_every_metric_is_offered_for_every_student(watched: Watched) -> None:
    assert watched.metrics.keys() == {*TRAIN, *TEST, *PROGRESS}
    whole = {("seen", name) for name in ("a", "b", "ensemble")}
    for metric, found in watched.metrics.items():
        measured_by_students = metric.endswith("_seconds") or metric == "kdcl_distillation_loss"
        assert found.keys() == (whole - {("seen", "ensemble")} if measured_by_students else whole), metric


def test_the_last_values_are_the_results(watched: Watched) -> None:
    for metric, (name, _) in TEST.items():
        results = {student: values[name] for student, values in watched.record["results"].items()}
        assert {student: value for (_, student), value in watched.metrics[metric].items()} == results
    ended = [event for event in watched.events if isinstance(event, EpochEnded)][-1]
    for metric, (name, _) in TRAIN.items():
        for (_, student), value in watched.metrics[metric].items():
            assert value == pytest.approx(ended.train[student][name]), metric
    assert set(watched.metrics["kdcl_epoch"].values()) == {2.0}
    assert set(watched.metrics["kdcl_steps"].values()) == {6.0}


def test_processes_have_the_students_names(watched: Watched) -> None:
    wanted = {f"ray::kdcl:seen/{name}" for name in ("a", "b", "coordinator")} | {"kdcl:a", "kdcl:b"}
    assert wanted <= watched.titles, sorted(title for title in watched.titles if "kdcl" in title)


def test_no_actor_hands_out_data_sets_of_ray(watched: Watched) -> None:
    assert "TrainController" in watched.actors
    assert "DatasetManager" not in watched.actors


def test_no_process_imports_what_it_does_not_use(watched: Watched) -> None:
    found = watched.imports
    for name in ("a", "b", "coordinator"):
        assert found[name] & never(name) == set(), name
    assert "tensorboardX" not in found["a"] | found["b"]
    # Ray is in the workers that started these, and comes to the coordinator with their handles.
    assert "ray" not in found["a"] | found["b"]
    assert "torch._dynamo" not in found["coordinator"]


class Gauge:
    """Stands in for Ray's: what all of them were set to last."""

    values: dict[tuple[str, str], float]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name = name

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[self.name, tags["student"]] = value


def test_progress_within_and_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gauge, "values", {}, raising=False)
    monkeypatch.setattr("kdcl_dist.launch.ray.metrics.Gauge", Gauge)
    metrics = RayMetrics("r")
    expected: list[tuple[Event, int, int]] = [
        (Started(["a"], {}, 9, 4, 10), 2, 10),
        (Stepped(11, {"a": {"loss": 2.0}}), 2, 11),
        (Stepped(12, {"a": {"loss": 1.0}}), 2, 12),
        (EpochEnded(2, {"a": {"loss": 1.5}}, {"a": {"top1": 0.5}}, {"a": {"top1": 0.25}}), 3, 12),
        (Stepped(13, {}), 3, 13),
    ]
    for event, epoch, step in expected:
        metrics.handle(event)
        assert (Gauge.values["kdcl_epoch", "a"], Gauge.values["kdcl_steps", "ensemble"]) == (epoch, step)
    assert Gauge.values["kdcl_train_loss", "a"] == 1.5
    assert Gauge.values["kdcl_test_top1", "a"] == 0.5
    assert Gauge.values["kdcl_val_top1", "a"] == 0.25


def test_broken_metrics_are_logged_once_and_harm_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kdcl_dist.launch.ray.metrics.Gauge", None)
    metrics = RayMetrics("r")
    for _ in range(3):
        metrics.handle(Started(["a"], {}, 9, 4, 0))
    assert [record.message for record in caplog.records] == ["the run goes on without its metrics"]


def test_the_dashboard_asks_for_what_is_offered() -> None:
    monitor = json.loads(DASHBOARD.read_text())
    panels = monitor["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert all('run=~"$run"' in query for query in queries)
    asked = {name for query in queries for name in re.findall(r"\bray_(\w+)", query)}
    assert asked == {*TRAIN, *TEST, *PROGRESS}
    variables = {variable["name"]: variable for variable in monitor["templating"]["list"]}
    assert variables.keys() == {"datasource", "run"}
    assert variables["run"]["definition"] == "label_values(ray_kdcl_steps, run)"
    sources = re.findall(r'"uid": "(.*?)"', json.dumps([panels, variables]))
    assert set(sources) == {"${datasource}"}


def test_the_readme_names_every_metric() -> None:
    text = DASHBOARD.with_name("README.md").read_text()
    assert set(re.findall(r"`(kdcl_\w+)`", text)) == {*TRAIN, *VAL, *TEST, *PROGRESS}
