"""The way from a laptop to a cluster of three hosts, with the commands of cluster/README.md, word for word.

The hosts are real for Ray: own network, own names (which resolve to 127.0.0.1), own processes and disks,
and one folder that they share. Only ssh is imitated, and what is installed on them is this environment.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from cohorts import ROOT, SUPPORT, Inject, assert_same, weights
from commands import run
from hosts import Host, hosts, why_not
from rays import TRIES

from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder

REASON = why_not(gigabytes=6)
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
#: Seconds that Ray waits for a job that is asked to stop, where users have 25: this machine may be slow.
STOP_S = 400

README = (ROOT / "cluster" / "README.md").read_text()
ADDRESSES = {"head": "10.0.0.10", "a": "10.0.0.11", "b": "10.0.0.12", "laptop": "10.0.0.20"}
URL = "http://10.0.0.10:8265"
SCRIPT = "cluster/on-premises/cluster.sh"
#: Left out of what is uploaded; each has a file that would be too large to.
NOT_UPLOADED = (".git", ".venv", "runs", "data")
#: Variables of tests/conftest.py, and the folder from which all processes import what they are for.
VARIABLES = (
    "KDCL_TEST_FAULTS",
    "KDCL_TEST_LIGHT_WORKERS",
    "NUMBA_CACHE_DIR",  # no host compiles what this one has
    "RAY_prestart_worker_first_driver",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
)
INJECT = str(SUPPORT / "inject")


def documented(beginning: str) -> str:
    """The one command line of the read-me file that begins so."""
    found = re.findall(rf"^{re.escape(beginning)}.*$", README, re.MULTILINE)
    assert len(set(found)) == 1, (beginning, found)
    return str(found[0])


@dataclass
class Cluster:
    """The hosts, after `cluster.sh up`."""

    hosts: dict[str, Host]
    project: Path
    shared: Path

    def on_laptop(self, line: str, limit_s: float = 1500) -> tuple[int, str]:
        return self.hosts["laptop"].run(["bash", "-c", line], self.project, limit_s)

    def started_on_laptop(self, line: str) -> subprocess.Popen[str]:
        return self.hosts["laptop"].start(["bash", "-c", f"exec {line}"], self.project)

    def train_here(self, line: str) -> None:
        """Run `kdcl train` on one host, this one, whose server of processes has its imports."""
        arguments = shlex.split(line.replace("/mnt/shared", str(self.shared)))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.project)
            result = run(*arguments[1:])
        assert result.exit_code == 0, result.output

    def run(self, name: str) -> Folder:
        return Folder(str(self.shared / "runs" / name))

    def await_step(self, name: str, step: int, limit_s: float = 1500) -> None:
        """Wait until a run has a checkpoint of at least this step."""
        deadline = time.monotonic() + limit_s
        while max([int(n[5:]) for n in self.run(name).names("checkpoints") if "-" in n], default=0) < step:
            assert time.monotonic() < deadline, read_record(self.run(name))
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("hosts")
    tools = folder / "bin"
    path = f"{tools}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    environment = {"PATH": path, "LANG": "C.UTF-8", "TERM": "dumb"}
    # Of Ray's processes as few as in the other tests, with as few imports.
    environment |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    environment["PYTHONPATH"] = INJECT
    with hosts(folder, ADDRESSES, environment) as made:
        _imitate_ssh(tools, made)
        for host in made.values():  # what `cluster.sh install` leaves
            (host.home / "kdcl").symlink_to(Path(sys.executable).parent.parent)
        cluster = Cluster(made, _checkout(folder / "checkout"), folder / "mnt/shared")
        made["laptop"].environment |= _laptop(cluster.project)
        code, written = cluster.on_laptop(documented(f"{SCRIPT} up"))
        assert code == 0, written
        assert "submit jobs to http://10.0.0.10:8265" in written
        _, resolved = made["a"].run(["bash", "-c", "getent hosts $(hostname)"])
        assert resolved.startswith("127.0.0.1"), "the worst case for finding the own address"
        deadline = time.monotonic() + 1500
        while "CPU" not in written:  # the workers join a moment after they have started
            assert time.monotonic() < deadline, written
            code, written = cluster.on_laptop(documented(f"{SCRIPT} status"))
            assert code == 0, written
        yield cluster
        code, written = cluster.on_laptop(documented(f"{SCRIPT} down"))
        assert code == 0, written


def _laptop(project: Path) -> dict[str, str]:
    """What the laptop's shell has: the checkout installed, and what is documented to be exported."""
    name, _, value = documented("export RAY_AUTH_MODE").removeprefix("export ").partition("=")
    return {name: value, "PYTHONPATH": f"{project}{os.pathsep}{INJECT}"}


def _imitate_ssh(tools: Path, made: dict[str, Host]) -> None:
    """An `ssh` that reaches the hosts by their addresses; called as `ssh -o OPTION ADDRESS COMMAND`."""
    tools.mkdir()
    cases = "\n".join(
        f'{host.address}) exec {" ".join(host.prefix)} env HOME={host.home} bash -c "$4" ;;'
        for host in made.values()
    )
    script = tools / "ssh"
    script.write_text(f'#!/bin/bash\ncase "$3" in\n{cases}\nesac\necho "unknown host $3" >&2\nexit 255\n')
    script.chmod(0o755)


def _checkout(folder: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("kdcl_dist", "cluster", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    jobs = folder / "kdcl_dist/launch/ray/jobs.py"
    text = jobs.read_text()
    assert text.count('"RAY_JOB_STOP_WAIT_TIME_S": "25"') == 1
    jobs.write_text(text.replace('"25"', f'"{STOP_S}"'))
    for name in NOT_UPLOADED:
        (folder / name).mkdir()
        (folder / name / "large").write_bytes(bytes(1000))
    return folder


def test_a_job_from_the_laptop_gives_what_one_host_gives(cluster: Cluster) -> None:
    """Also: closing the client leaves the job running."""
    line = documented("ray job submit")
    client = cluster.started_on_laptop(line)
    cluster.await_step("first", 1)
    client.send_signal(signal.SIGINT)
    written, _ = client.communicate(timeout=1500)
    assert "submitted successfully" in written
    assert "run folder /mnt/shared/runs/first" in written, "the job's log was not streamed"
    job = re.search(r"raysubmit_\w+", written)
    assert job is not None
    _, log = cluster.on_laptop(f"ray job logs --follow --address {URL} {job[0]}")
    assert "SUCCEEDED" in log or "succeeded" in log, log
    record = read_record(cluster.run("first"))
    assert record["state"] == "finished"
    assert {name: at["host"] for name, at in record["placement"].items()} == {
        "large": ADDRESSES["a"],
        "mlp": ADDRESSES["b"],
    }
    _check_upload(cluster)
    cluster.train_here(line.split(" -- ")[1].replace("--name first", "--name local --launcher local"))
    for name in record["placement"]:
        steps = [int(n[5:]) for n in cluster.run("local").names("checkpoints")]
        assert_same(*(weights(cluster.run(run), max(steps), name) for run in ("first", "local")))


def _check_upload(cluster: Cluster) -> None:
    """Every host has unpacked the checkout, but for what is excluded."""
    folder = cluster.project.parent
    for host in ("head", "a", "b"):
        (package,) = folder.glob(f"{host}/tmp/ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
        names = {path.name for path in package.iterdir()}
        assert names >= {"kdcl_dist", "examples"}
        assert not names & set(NOT_UPLOADED)


def test_stopping_a_job_takes_a_checkpoint(cluster: Cluster) -> None:
    """Also: Ctrl-C at `kdcl submit` leaves the job running."""
    client = cluster.started_on_laptop(documented("kdcl submit"))
    cluster.await_step("second", 1)
    client.send_signal(signal.SIGINT)
    written, _ = client.communicate(timeout=1500)
    assert client.returncode == 130, written
    assert "run folder /mnt/shared/runs/second" in written, "the job's log was not streamed"
    assert "the job goes on" in written
    job = re.search(r"raysubmit_\w+", written)
    assert job is not None
    stop = documented("ray job stop").replace("raysubmit_XXXXXXXXXXXXXXXX", job[0])
    assert "RUNNING" in cluster.on_laptop(f"ray job status --address {URL} {job[0]}")[1]
    code, written = cluster.on_laptop(stop)
    assert code == 0, written
    # From the signal to the run's end; commands of Ray start and end as fast as the machine lets them.
    lines = cluster.run("second").read("logs/launcher.log").decode().splitlines()
    asked, ended = (
        next(datetime.fromisoformat(line.split()[0]) for line in lines if words in line)
        for words in ("stopping after this step", "end state=stopped")
    )
    took_s = (ended - asked).total_seconds()
    assert took_s < STOP_S
    printed = cluster.on_laptop(f"ray job logs --address {URL} {job[0]}")[1]
    assert "stopped after a checkpoint" in printed, "Ray killed the job before its end"
    record = read_record(cluster.run("second"))
    assert record["state"] == "interrupted", record
    latest = cluster.run("second").names("checkpoints")[-1]
    assert cluster.run("second").exists(f"checkpoints/{latest}/manifest.json")
    print(f"stopped after {took_s:.1f} s at {latest}")


def test_hosts_where_ray_runs_are_not_started_again(cluster: Cluster) -> None:
    code, written = cluster.on_laptop(documented(f"{SCRIPT} up"))
    assert code == 0, written
    for name in ("head", "a", "b"):
        assert f"Ray runs on {ADDRESSES[name]}" in written
    assert "submit jobs to" in written


@pytest.mark.parametrize("token", ["wrong" * 12, None], ids=["wrong", "none"])
def test_no_job_without_the_token(cluster: Cluster, token: str | None, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(str(token))
    there = f"RAY_AUTH_TOKEN_PATH={tmp_path / 'token'}" if token else "RAY_AUTH_MODE=disabled"
    code, written = cluster.on_laptop(f"{there} {documented('kdcl submit')}")
    assert code == 2, written
    assert "the cluster refuses the token" in written
    assert len(written.splitlines()) == 1
    code, written = cluster.on_laptop(f"{there} ray job list --address {URL}")
    assert code != 0, written


def test_a_link_that_is_cut_and_a_host_that_dies(cluster: Cluster, inject: Inject, tmp_path: Path) -> None:
    """A cut that heals within `limits.step_s` goes unnoticed; a dead host's student waits for one."""
    inject("large", "forward", 4 * 22, "hold", until=tmp_path / "dead")  # the run does not end before
    # The labels keep the students apart; a share of two cores would too, but two threads wait actively.
    sets = "--set epochs=5 --set students.small=null --set students.large.accelerator=A100"
    recipe = f"examples/digits.yaml --storage /mnt/shared/runs {sets} --set students.mlp.accelerator=T4"
    client = cluster.started_on_laptop(f"kdcl submit {recipe} --address {URL} --name disturbed")
    cluster.await_step("disturbed", 1)
    placement = read_record(cluster.run("disturbed"))["placement"]
    own = {host.address: host for host in cluster.hosts.values()}[placement["mlp"]["host"]]
    assert placement["large"]["host"] != own.address
    assert own.run(["ip", "link", "set", "eth0", "down"])[0] == 0
    time.sleep(5)
    assert own.run(["ip", "link", "set", "eth0", "up"])[0] == 0
    now = max(int(name[5:]) for name in cluster.run("disturbed").names("checkpoints"))
    cluster.await_step("disturbed", now + 1)
    assert "failures" not in read_record(cluster.run("disturbed"))
    everything = "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p -le 2 -o $p = $$ ] || kill -9 $p; done; true"
    joins = f"ray start --address={ADDRESSES['head']}:6379 --node-ip-address={own.address}"
    label = f"--labels=ray.io/accelerator-type={'A100' if own.name == 'a' else 'T4'}"
    for _ in range(TRIES):  # Ray gives a node 30 s to start
        own.run(["bash", "-c", everything])  # but for what keeps the host up
        (tmp_path / "dead").touch()
        code, written = own.run(["bash", "-c", f"RAY_AUTH_MODE=token {joins} {label} --disable-usage-stats"])
        if "timed out during startup" not in written:
            break
    assert code == 0, written
    # While Ray finds out that the host has died:
    cluster.train_here(f"kdcl train {recipe} --name undisturbed --launcher local")
    written, _ = client.communicate(timeout=1500)
    assert client.returncode == 0, written
    record = read_record(cluster.run("disturbed"))
    assert record["state"] == "finished"
    (cause,) = record["failures"]["causes"]
    if cause["error"] != "CoordinatorLost":  # which ran on the host that died, or on another
        assert (cause["error"], cause["student"], cause["host"]) == ("StudentLost", "mlp", own.address)
    survivor = record["placement"]["large"]
    assert survivor["pid"] == placement["large"]["pid"], "the survivor was started again"
    for name in placement:
        found = [
            weights(cluster.run(run), max(int(n[5:]) for n in cluster.run(run).names("checkpoints")), name)
            for run in ("disturbed", "undisturbed")
        ]
        assert_same(*found)
