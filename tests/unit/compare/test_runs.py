"""The order of an experiment's runs, and what becomes of each; training itself is replaced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cohorts import MakeRecipe
from experiments import make_table

from kdcl_dist.compare import runs
from kdcl_dist.compare.experiment import Job, jobs_of, load_table
from kdcl_dist.compare.runs import Outcome, finished_before, run_jobs
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.errors import RunFolderError, StudentFailed
from kdcl_dist.run.events import CheckpointSaved
from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.storage import Folder


@dataclass
class Result:
    """What `train` returns."""

    metrics: dict[str, dict[str, float]]
    finished: bool = True


@pytest.fixture
def jobs(make_recipe: MakeRecipe, tmp_path: Path) -> list[Job]:
    table = make_table(make_recipe, tmp_path)
    return jobs_of(load_table(table), table.parent)


def run_with(
    patch: pytest.MonkeyPatch,
    train: Callable[..., Result],
    jobs: list[Job],
    folder: Path,
    *,
    concurrent: int = 1,
    stop: threading.Event | None = None,
    on_event: Any = lambda job, event: None,
) -> list[Outcome]:
    """Run the jobs with another `train`; checks that each outcome was reported once."""
    patch.setattr(runs, "train", train)
    reported: list[Outcome] = []
    found = run_jobs(
        jobs,
        str(folder / "runs"),
        launcher="local",
        max_concurrent_runs=concurrent,
        stop=stop or threading.Event(),
        on_event=on_event,
        on_outcome=reported.append,
    )
    assert sorted(o.job.name for o in reported) == sorted(o.job.name for o in found)
    return found


def test_all_jobs_run_in_order_with_their_events(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    names: list[str] = []

    def train(recipe: Any, *, name: str, on_event: Any, resume: bool, **_: Any) -> Result:
        assert not resume
        names.append(name)
        on_event(CheckpointSaved(recipe.seed))
        return Result({"a": {"top1": recipe.seed / 10}})

    found = run_with(
        monkeypatch, train, jobs, tmp_path, on_event=lambda job, event: events.append((job.name, event.step))
    )
    assert names == [job.name for job in jobs]
    assert events == [(job.name, job.seed) for job in jobs]
    assert [outcome.results for outcome in found] == [{"a": {"top1": job.seed / 10}} for job in jobs]


def test_as_many_runs_at_once_as_asked_for(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=120)

    def train(recipe: Any, **_: Any) -> Result:
        together.wait()  # a single run at a time would never pass
        return Result({})

    assert len(run_with(monkeypatch, train, jobs, tmp_path, concurrent=2)) == 4


def test_a_failed_job_does_not_end_the_others(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = StudentFailed("out of memory", student="a")

    def train(recipe: Any, *, name: str, **_: Any) -> Result:
        if name == "naive-seed0":
            raise error
        return Result({})

    found = run_with(monkeypatch, train, jobs, tmp_path)
    assert [(outcome.job.name, outcome.error) for outcome in found if outcome.error] == [
        ("naive-seed0", error)
    ]
    assert len(found) == 4


def test_no_run_starts_after_a_stop(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()

    def train(recipe: Any, *, name: str, **_: Any) -> Result:
        if name == jobs[1].name:
            stop.set()
            return Result({}, finished=False)
        return Result({})

    found = run_with(monkeypatch, train, jobs, tmp_path, stop=stop)
    assert [outcome.job.name for outcome in found] == [jobs[0].name]


def test_an_error_of_the_program_stops_everything(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()

    def train(recipe: Any, **_: Any) -> Result:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_with(monkeypatch, train, jobs, tmp_path, stop=stop)
    assert stop.is_set()


def make_folder(job: Job, folder: Path, **record: object) -> Folder:
    """The folder of a run of the job."""
    made = Folder(str(folder / job.name))
    made.write("recipe.yaml", dump_recipe(job.recipe).encode())
    update_record(made, **record)
    return made


def test_finished_runs_are_resumed_and_others_without_a_checkpoint_begin_anew(
    jobs: list[Job], tmp_path: Path
) -> None:
    finished = make_folder(jobs[0], tmp_path, state="finished")
    assert runs._can_resume(jobs[0], finished)
    running = make_folder(jobs[1], tmp_path, state="running")
    assert not runs._can_resume(jobs[1], running)
    assert running.exists("recipe.yaml")  # it may be another process's
    assert not runs._can_resume(jobs[2], Folder(str(tmp_path / "none")))


def test_a_finished_run_is_known_with_its_time(jobs: list[Job], tmp_path: Path) -> None:
    scores = {"loss": 0.5, "top1": 0.75, "top5": 1.0}
    make_folder(jobs[0], tmp_path, state="finished", results={"a": scores}, seconds=41.5)
    make_folder(jobs[1], tmp_path, state="finished", results={"a": scores})  # of an earlier version
    make_folder(jobs[2], tmp_path, state="running", results={"a": scores})
    other = make_folder(jobs[0], tmp_path, state="finished").uri
    Path(other).rename(tmp_path / jobs[3].name)
    make_folder(jobs[0], tmp_path, state="finished", results={"a": scores}, seconds=41.5)
    found = finished_before(jobs, str(tmp_path))
    assert [(each.job.name, each.seconds) for each in found] == [(jobs[0].name, 41.5), (jobs[1].name, None)]
    assert [each.results for each in found] == [{"a": scores}] * 2


def test_the_time_of_all_starts_is_kept(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(runs, "latest", lambda *_: "a checkpoint")
    folder = tmp_path / "runs" / jobs[0].name

    def train(recipe: Any, **_: Any) -> Result:
        clock[0] += 20
        make_folder(jobs[0], tmp_path / "runs", state="running")
        return Result({}, finished=clock[0] > 20)

    assert run_with(monkeypatch, train, jobs[:1], tmp_path) == []
    assert read_record(Folder(str(folder)))["seconds"] == 20
    (second,) = run_with(monkeypatch, train, jobs[:1], tmp_path)
    assert second.seconds == 40


def test_a_folder_of_another_recipe_is_refused_and_kept(jobs: list[Job], tmp_path: Path) -> None:
    folder = make_folder(jobs[0], tmp_path, state="finished")
    with pytest.raises(RunFolderError, match=r"another recipe, which differs in .*'none' -> 'naive'"):
        runs._can_resume(jobs[1], folder)
    assert folder.exists("recipe.yaml")
