"""`kdcl submit`, and what a run does as a job; the way over real hosts is in test_cluster_hosts.py."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from click.testing import CliRunner, Result
from cohorts import MakeRecipe
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.errors import RunFolderError
from kdcl_dist.launch.ray import driver as launcher
from kdcl_dist.launch.ray import jobs
from kdcl_dist.launch.ray.common import at_this_host

URL = "http://head:8265"


class Client:
    """Ray's client, as far as it is used, with a job whose end a test sets."""

    status: JobStatus = JobStatus.SUCCEEDED
    driver_exit_code: int | None = 0
    submitted: dict[str, Any]

    def __init__(self, address: str) -> None:
        assert address == URL

    def submit_job(self, **options: Any) -> str:
        Client.submitted = options
        return "raysubmit_1"

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "epoch 1 "
        yield "of 2\n"

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(status=self.status, driver_exit_code=self.driver_exit_code)


@pytest.fixture
def recipe(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my recipe.yaml").write_text(dump_recipe(make_recipe()))
    return "my recipe.yaml"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    class Own(Client):
        pass

    monkeypatch.setattr(jobs, "JobSubmissionClient", Own)
    monkeypatch.setattr(jobs, "_reach", lambda address: None)
    return Own


def submit(recipe: str, *more: str, address: str = URL, storage: str = "/mnt/runs") -> Result:
    return CliRunner().invoke(kdcl, ["submit", recipe, "--address", address, "--storage", storage, *more])


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 130, 130),
        (JobStatus.FAILED, -9, 1),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_exit_codes(
    recipe: str, client: type[Client], status: JobStatus, driver: int | None, code: int
) -> None:
    client.status, client.driver_exit_code = status, driver
    result = submit(recipe)
    assert result.exit_code == code
    assert "epoch 1 of 2\n" in result.output


def test_what_is_submitted(recipe: str, client: type[Client]) -> None:
    more = ["--set", "epochs=1", "--set", "name=a b", "--name", "mine", "--resume", "--no-wait"]
    result = submit(recipe, *more, storage="s3://bucket/runs")
    assert result.exit_code == 2, "a recipe's name has no space"
    more[3] = "name=ab"
    result = submit(recipe, *more, storage="s3://bucket/runs")
    assert result.exit_code == 0, result.output
    assert Client.submitted["entrypoint"] == (
        "kdcl train 'my recipe.yaml' --storage s3://bucket/runs "
        "--set epochs=1 --set name=ab --name mine --resume"
    )
    assert Client.submitted["runtime_env"] == {**jobs.RUNTIME_ENV, "working_dir": "."}
    assert "epoch 1" not in result.output
    assert "`ray job stop raysubmit_1 --address http://head:8265`" in result.output


def test_an_own_runtime_environment(recipe: str, client: type[Client], tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text("env_vars: {A: b}")
    assert submit(recipe, "--runtime-env", "env.yaml").exit_code == 0
    assert Client.submitted["runtime_env"] == {"env_vars": {"A": "b"}, "working_dir": "."}


@pytest.mark.parametrize(
    ("change", "ignored", "words"),
    [
        ("students.a.model=cnn_smal", "", "error: student 'a': model 'cnn_smal' is unknown"),
        ("epochs=1", "*.yaml", "error: recipe: 'my recipe.yaml' is kept back from the upload by .gitignore"),
    ],
)
def test_a_job_that_would_fail_is_not_uploaded(
    recipe: str, client: type[Client], tmp_path: Path, change: str, ignored: str, words: str
) -> None:
    def submitted(self: Client, **options: Any) -> str:
        raise AssertionError("uploaded")

    client.submit_job = submitted  # type: ignore[method-assign]
    (tmp_path / ".gitignore").write_text(ignored)
    result = submit(recipe, "--set", change)
    assert result.exit_code == 2, result.output
    assert result.output.startswith(f"kdcl: {words}")
    assert result.output.count("\n") == 1


def test_ctrl_c_leaves_the_job(recipe: str, client: type[Client], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.Jobs, "follow", interrupted)
    result = submit(recipe)
    assert result.exit_code == 130
    assert "the job goes on: `ray job logs --follow raysubmit_1" in result.output


def test_a_lost_connection_leaves_the_job(
    recipe: str, client: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(self: Client, job: str) -> AsyncIterator[str]:
        raise ConnectionResetError("gone")
        yield ""

    monkeypatch.setattr(client, "tail_job_logs", lost)
    result = submit(recipe)
    assert result.exit_code == 1
    assert "was lost (ConnectionResetError: gone); the job goes on" in result.output


def test_a_wrong_token(recipe: str, client: type[Client], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Client, address: str) -> None:
        raise AuthenticationError("403")

    monkeypatch.setattr(client, "__init__", refused)
    result = submit(recipe)
    assert result.exit_code == 2
    assert "the cluster refuses the token" in result.output
    assert result.output.count("\n") == 1


def test_mistakes(recipe: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        cases = [
            (submit(recipe, address=nobody), [nobody, "refused"]),
            (submit(recipe, address="head:8265"), ["head:8265", "http://"]),
            (submit("none.yaml"), ["none.yaml", "cannot be read"]),
            (submit(recipe, "--set", "epohcs=1"), ["epohcs", "unknown field"]),
            (submit(recipe, storage="runs"), ["--storage 'runs'", "absolute path or a URI"]),
            (submit(str(tmp_path / recipe), "--working-dir", "/usr"), ["is not in the folder", "/usr"]),
        ]
    for result, words in cases:
        assert result.exit_code == 2, result.output
        assert result.output.startswith("kdcl: error: ")
        assert result.output.count("\n") == 1
        assert all(word in result.output for word in words), result.output


def test_an_address_that_is_given_goes_before_the_environment(
    recipe: str, client: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(self: Client, address: str) -> None:
        assert not {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"} & os.environ.keys()

    monkeypatch.setattr(client, "__init__", seen)
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    assert submit(recipe).exit_code == 0
    assert os.environ["RAY_ADDRESS"] == "http://elsewhere:8265"


def test_sigterm_stays_ours_when_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray job stop` sends it, and Ray's own handler ends the process without a checkpoint."""
    stop_requested = threading.Event()
    old = signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        launcher._init(address="auto")
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert stop_requested.is_set()


def test_a_job_does_not_store_its_run_in_its_working_directory(
    make_recipe: MakeRecipe, make_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = replace(make_run(make_recipe()), root=str(tmp_path))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(RunFolderError, match="copy of its working directory"):
        launcher.launch(run, lambda event: None, threading.Event())


def test_the_root_on_a_host_with_another_temporary_folder(
    make_recipe: MakeRecipe, make_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_run(make_recipe())
    context = SimpleNamespace(runtime_env={"working_dir": "gcs://_ray_pkg_1.zip"})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:/other")
    assert at_this_host(run).root == run.root
    elsewhere = replace(run, root="/no/such/folder")
    assert at_this_host(elsewhere).root == str(tmp_path)
    context.runtime_env = {}
    assert at_this_host(elsewhere).root == "/no/such/folder"
