"""Before a run: each check by itself, the questions to several hosts, and what the command line says."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cohorts import MakeRecipe, write_images
from reports import REPORT

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.errors import PreflightError
from kdcl_dist.launch.preflight import checks as P
from kdcl_dist.launch.preflight.checks import Check
from kdcl_dist.launch.preflight.host_report import Listener, connect, look, unread
from kdcl_dist.launch.preflight.placement import ACCELERATOR, Host, Need, lacks, needs_of
from kdcl_dist.run.storage import Folder

OTHER = replace(REPORT, address="10.0.0.2", hostname="two")


def only(check: Check) -> str:
    """The one line that a check complains with."""
    (line,) = check.failures + check.warnings
    assert "\n" not in line
    return line


# -- the checks, on plain values -----------------------------------------------------------------


def test_a_cast_that_fits() -> None:
    needs = [Need("a", 2), Need("b", 2, 0.5, "A100"), Need("c", 2, 0.5, "A100"), Need("d", 1, 1, "T4")]
    hosts = [Host("h", 2), Host("x", 4, 1, {ACCELERATOR: "A100"}), Host("y", 4, 1, {ACCELERATOR: "T4"})]
    assert lacks(needs, hosts) == []


def test_those_that_ask_for_a_type_choose_first() -> None:
    needs = [Need("any", 1, 1), Need("a100", 1, 1, "A100")]
    hosts = [Host("x", 4, 1, {ACCELERATOR: "A100"}), Host("y", 4, 1, {ACCELERATOR: "T4"})]
    assert lacks(needs, hosts) == []


def test_shares_of_a_gpu_are_of_one_device() -> None:
    needs = [Need(name, 1, 0.6) for name in "abc"]
    assert lacks(needs, [Host("x", 8, 3)]) == []
    assert len(lacks(needs, [Host("x", 8, 2)])) == 1


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (Need("big", 1, 0, "H100"), ["'big'", "no host offers", "H100", "students.big.accelerator"]),
        (Need("big", 1, 1), ["'big'", "GPU 1", "x: CPU 4", "students.big.resources"]),
        (Need("big", 9), ["'big'", "CPU 9", "x: CPU 4"]),
        (Need("big", 3), ["'big'", "no room left", "1 other"]),
    ],
)
def test_who_lacks_what_is_told(need: Need, words: list[str]) -> None:
    (line,) = lacks([Need("small", 2), need], [Host("x", 4)])
    assert all(word in line for word in words), line


def test_every_worker_takes_what_the_largest_does(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("students.a.resources.cpu=3", "students.b.accelerator=T4")
    assert needs_of(recipe) == [Need("a", 3), Need("b", 3, 0, "T4")]
    assert "nowhere" not in P.placement(needs_of(recipe), []).figure
    assert len(P.placement(needs_of(recipe), []).failures) == 2


def test_versions() -> None:
    assert P.versions([REPORT, OTHER]).ok
    other = replace(OTHER, versions=OTHER.versions | {"torch": "2.13.0"})
    line = only(P.versions([REPORT, other]))
    assert line.startswith("host 10.0.0.2 has torch 2.13.0, 10.0.0.1 has 2.14.1; install")
    del other.versions["ray"]
    assert len(P.versions([REPORT, other]).failures) == 2


def test_data() -> None:
    assert P.data([REPORT, OTHER]).ok
    assert "data.test is not the data set of 10.0.0.1" in only(
        P.data([REPORT, replace(OTHER, data={"train": "a" * 64, "test": "c" * 64})])
    )
    gone = replace(OTHER, data={"test": "b" * 64}, problems={"train": "x.arrow: no such file"})
    assert only(P.data([REPORT, gone])).startswith("host 10.0.0.2: data.train: x.arrow: no such file; copy")


def test_storage(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert P.storage(folder, [REPORT, OTHER], {"10.0.0.1": [], "10.0.0.2": []}).ok
    line = only(P.storage(folder, [REPORT, OTHER], {"10.0.0.1": ["10.0.0.2"], "10.0.0.2": []}))
    assert line.startswith(f"host 10.0.0.1 does not see in {tmp_path} what 10.0.0.2 wrote")
    assert "NFS" in line
    full = replace(OTHER, problems={"storage": "disk full"})
    assert "host 10.0.0.2: disk full" in only(P.storage(folder, [REPORT, full], {}))


def test_addresses() -> None:
    assert P.addresses([REPORT, OTHER]).ok
    assert P.addresses([replace(REPORT, address="127.0.0.1")]).ok, "one host alone may be 127.0.0.1"
    line = only(P.addresses([REPORT, replace(OTHER, address="127.0.1.1")]))
    assert "two" in line
    assert "--node-ip-address" in line


def test_network() -> None:
    assert P.network(3, {"10.0.0.1": {}}).figure.startswith("6 connections")
    assert "10.0.0.1 cannot reach 10.0.0.2 (timed out)" in only(
        P.network(2, {"10.0.0.1": {"10.0.0.2": "timed out"}})
    )


@pytest.mark.parametrize(("clock", "off"), [(1000.0, 0), (1010.0, 0), (990.0, 10), (1050.0, 40), (997.0, 3)])
def test_clocks(clock: float, off: int) -> None:
    check = P.clocks([replace(REPORT, clock=clock)], asked=1000.0, answered={"10.0.0.1": 1010.0})
    assert check.ok, "a wrong clock is no reason not to train"
    assert check.figure == f"within {off:.1f} s"
    assert len(check.warnings) == (off > 5)


def test_shared_memory(make_recipe: MakeRecipe) -> None:
    small = [REPORT, replace(OTHER, shm_bytes=64 << 20)]
    assert not P.shared_memory(make_recipe(), small).warnings
    check = P.shared_memory(make_recipe("data.loader_workers=2"), small)
    assert check.ok
    assert "host 10.0.0.2 has 64 MB" in only(check)


def test_all_failures_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("one", "", ["a", "b"]), Check("two", "", warnings=["w"]), Check("three", "", ["c"])]
    warnings: list[str] = []
    with pytest.raises(PreflightError) as caught:
        P.require(checks, warnings.append)
    assert str(caught.value).splitlines() == ["one: a", "one: b", "three: c"]
    assert caught.value.exit_code == 2
    assert warnings == ["two: w"]


# -- what a host finds ---------------------------------------------------------------------------


def test_a_host_looks_around(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    checks = P.check_here(make_recipe(), folder, "127.0.0.1", {"ray": "2"})
    assert [check.name for check in checks if not check.ok] == []
    assert not list(tmp_path.iterdir()), "nothing is left in the storage"
    report = look(make_recipe("data.train=gone.arrow"), folder, "x/0", "10.0.0.1", {})
    assert "gone.arrow" in report.problems["train"]
    assert report.data.keys() == {"test"}
    assert unread(folder, ["x/0", "x/1"], wait_s=0) == ["x/1"]


def test_an_unwritable_storage_is_a_finding(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checks = P.check_here(make_recipe(), Folder(str(tmp_path / "file" / "runs")), "127.0.0.1", {})
    (check,) = [check for check in checks if not check.ok]
    assert check.name == "storage"
    assert "cannot be written" in only(check)


def test_a_listener_is_reached_and_a_closed_port_is_not() -> None:
    listener = Listener("127.0.0.1")
    assert connect([listener.endpoint], 1) == {}
    listener.close()
    assert "refused" in connect([listener.endpoint], 1)["127.0.0.1"].lower()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:  # connections pile up unanswered
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        began = time.monotonic()
        assert connect([full.getsockname()], 0.5).keys() == {"127.0.0.1"}
        assert time.monotonic() - began < 15
        for one in waiting:
            one.close()


# -- the command line ----------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(kdcl, list(arguments))


@pytest.fixture
def recipe(make_recipe: MakeRecipe, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(make_recipe()))
    return str(path)


def test_the_command_on_this_machine(recipe: str, tmp_path: Path) -> None:
    options = ["--launcher", "local", "--storage", str(tmp_path / "runs")]
    result = run("preflight", recipe, *options)
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines()] == ["ok"] * 7
    wrong = ["data.train=gone.arrow", "data.test=gone2.arrow", "students.a.resources.gpu=1"]
    result = run("preflight", recipe, *options, *(part for w in wrong for part in ("--set", w)))
    assert result.exit_code == 2
    assert [line.split()[1] for line in result.output.splitlines() if line.startswith("failed")] == [
        "placement",
        "data",
    ]
    lines = [line for line in result.output.splitlines() if line.startswith("kdcl: error: ")]
    assert len(lines) == 3
    assert "Traceback" not in result.output


# -- several hosts -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A Ray cluster of two nodes with addresses of their own, on this machine; the second has an A100."""
    import ray
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("hosts")
    one, two = (str(write_images(folder / f"{number}.arrow", 60, seed=number)) for number in (1, 2))
    addresses = ["127.0.0.2", "127.0.0.3"]
    patch, cluster = pytest.MonkeyPatch(), Cluster()
    try:
        patch.setenv("KDCL_TEST_DATA", one)
        cluster.add_node(num_cpus=1, node_ip_address=addresses[0], include_dashboard=False)
        other = {"labels": {ACCELERATOR: "A100"}, "env_vars": {"KDCL_TEST_DATA": two}}
        cluster.add_node(num_cpus=2, node_ip_address=addresses[1], **other)
        ray.init(address=cluster.address, log_to_driver=False, _node_ip_address=addresses[0])
        yield addresses
    finally:
        ray.shutdown()
        cluster.shutdown()
        patch.undo()


def on(recipe: object, folder: Folder) -> dict[str, Check]:
    from kdcl_dist.launch.ray.preflight import run_checks

    return {check.name: check for check in run_checks(recipe, folder, print)}  # type: ignore[arg-type]


def test_two_hosts_that_are_ready(hosts: list[str], make_recipe: MakeRecipe, tmp_path: Path) -> None:
    checks = on(make_recipe("students.b.accelerator=A100"), Folder(str(tmp_path)))
    assert [line for check in checks.values() for line in check.failures] == []
    assert checks["answers"].figure == "2 of 2 hosts"
    assert checks["network"].figure.startswith("2 connections")
    assert checks["addresses"].figure == ", ".join(hosts)
    assert not list(tmp_path.iterdir())


def test_two_hosts_with_everything_wrong(hosts: list[str], make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("data.train=nets:data_of_host", "students.a.accelerator=H100")
    checks = on(recipe, Folder("mock:///runs"))  # lives in each process's memory
    assert "'a': no host offers CPU 1 on a host with H100" in only(checks["placement"])
    assert f"host {hosts[1]}: data.train is not the data set of {hosts[0]}" in only(checks["data"])
    assert {line.split(" does not")[0] for line in checks["storage"].failures} == {f"host {h}" for h in hosts}


def test_a_host_whose_worker_dies_is_named(hosts: list[str], make_recipe: MakeRecipe, tmp_path: Path) -> None:
    checks = on(make_recipe("data.train=nets:exits"), Folder(str(tmp_path)))
    assert all("cannot run a worker" in line for line in checks["answers"].failures)
    assert {line.split()[1] for line in checks["answers"].failures} == {hosts[1]}


def test_a_run_begins_with_the_checks(hosts: list[str], recipe: str, tmp_path: Path) -> None:
    options = ["--storage", str(tmp_path / "runs"), "--set", "students.a.accelerator=H100"]
    result = run("train", recipe, *options)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("kdcl: ")]
    assert len(lines) == 1
    assert lines[0].startswith("kdcl: error: placement: student 'a': no host offers CPU 1")
    assert "epoch" not in result.output


def test_an_autoscaler_is_waited_for(
    hosts: list[str], make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcl_dist.launch.ray import preflight

    assert not preflight.may_grow()
    monkeypatch.setattr(preflight, "may_grow", lambda: True)
    told: list[str] = []
    began = time.monotonic()
    nodes = preflight.await_room(make_recipe("students.a.accelerator=H100"), began + 2, told.append)
    assert 2 < time.monotonic() - began < 60
    assert "waiting for the autoscaler" in told[0]
    assert len(nodes) == 2
