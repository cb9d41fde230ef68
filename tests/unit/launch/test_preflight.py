"""The checks before a run: each by itself, the inspection of a host, and the command line."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cohorts import MakeRecipe
from reports import REPORT
from stored_files import write_logits

from kdcl_dist.cli import kdcl
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.errors import PreflightError
from kdcl_dist.launch.preflight import checks as P
from kdcl_dist.launch.preflight.checks import Check
from kdcl_dist.launch.preflight.host_report import Listener, inspect_host, missing_files, unreachable
from kdcl_dist.run.storage import Folder

OTHER = replace(REPORT, address="10.0.0.2", hostname="two")


def only(check: Check) -> str:
    """The one failure or warning of a check."""
    (line,) = check.failures + check.warnings
    assert "\n" not in line
    return line


# -- the checks, on plain values -----------------------------------------------------------------


def test_versions() -> None:
    assert not P.versions([REPORT, OTHER]).failures
    other = replace(OTHER, versions=OTHER.versions | {"torch": "2.13.0"})
    line = only(P.versions([REPORT, other]))
    assert line.startswith("host 10.0.0.2 has torch 2.13.0, 10.0.0.1 has 2.14.1; install")
    del other.versions["ray"]
    assert len(P.versions([REPORT, other]).failures) == 2


def test_data() -> None:
    assert not P.data([REPORT, OTHER]).failures
    assert "data.test is not the data set of 10.0.0.1" in only(
        P.data([REPORT, replace(OTHER, data={"train": "a" * 64, "test": "c" * 64})])
    )
    gone = replace(OTHER, data={"test": "b" * 64}, problems={"train": "x.arrow: no such file"})
    assert only(P.data([REPORT, gone])).startswith("host 10.0.0.2: data.train: x.arrow: no such file; copy")


def test_storage(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert not P.storage(folder, [REPORT, OTHER], {"10.0.0.1": [], "10.0.0.2": []}).failures
    line = only(P.storage(folder, [REPORT, OTHER], {"10.0.0.1": ["10.0.0.2"], "10.0.0.2": []}))
    assert line.startswith(f"host 10.0.0.1 does not see in {tmp_path} what 10.0.0.2 wrote")
    assert "NFS" in line
    full = replace(OTHER, problems={"storage": "disk full"})
    assert "host 10.0.0.2: disk full" in only(P.storage(folder, [REPORT, full], {}))


def test_addresses() -> None:
    assert not P.addresses([REPORT, OTHER]).failures
    assert not P.addresses([replace(REPORT, address="127.0.0.1")]).failures, "one host alone may be 127.0.0.1"
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
    assert not check.failures, "a wrong clock is no reason not to train"
    assert check.figure == f"within {off:.1f} s"
    assert len(check.warnings) == (off > 5)


def test_shared_memory(make_recipe: MakeRecipe) -> None:
    small = [REPORT, replace(OTHER, shm_bytes=64 << 20)]
    assert not P.shared_memory(make_recipe(), small).warnings
    check = P.shared_memory(make_recipe("data.loader_workers=2"), small)
    assert not check.failures
    assert "host 10.0.0.2 has 64 MB" in only(check)


def test_all_failures_are_reported() -> None:
    checks = [Check("one", "", ["a", "b"]), Check("two", "", warnings=["w"]), Check("three", "", ["c"])]
    warnings: list[str] = []
    with pytest.raises(PreflightError) as caught:
        P.require(checks, warnings.append)
    assert str(caught.value).splitlines() == ["one: a", "one: b", "three: c"]
    assert caught.value.exit_code == 2
    assert warnings == ["two: w"]


# -- the inspection of a host ---------------------------------------------------------------------------


def test_the_inspection_of_a_host(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    checks = P.check_here(make_recipe(), folder, "127.0.0.1", {"ray": "2"})
    assert [check.name for check in checks if check.failures] == []
    assert not list(tmp_path.iterdir()), "nothing is left in the storage"
    report = inspect_host(make_recipe("data.train=gone.arrow"), folder, "x/0", "10.0.0.1", {})
    assert "gone.arrow" in report.problems["train"]
    assert report.data.keys() == {"test"}
    assert missing_files(folder, ["x/0", "x/1"], wait_s=0) == ["x/1"]


def test_an_unwritable_storage_is_a_finding(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checks = P.check_here(make_recipe(), Folder(str(tmp_path / "file" / "runs")), "127.0.0.1", {})
    (check,) = [check for check in checks if check.failures]
    assert check.name == "storage"
    assert "cannot be written" in only(check)


def test_stored_logits_are_checked(make_recipe: MakeRecipe, data: dict[str, str], tmp_path: Path) -> None:
    found = {}
    for name, more in (("good", {}), ("bad", {"ids": [0, 1]})):
        file = write_logits(tmp_path / f"{name}.arrow", data["train"], 1, **more)
        recipe = make_recipe(f"students=[{{name: a, model: mlp}}, {{name: t, logits: '{file}'}}]")
        checks = P.check_here(recipe, Folder(str(tmp_path)), "127.0.0.1", {})
        (found[name],) = [check for check in checks if check.name == "logits"]
    assert (
        found["good"].figure
        == f"t is {tmp_path}/good.arrow: logits, 1 training view and the test view, 120 rows"
    )
    assert not found["good"].failures
    assert "lacks view 0 of 58 of 60 training samples, the first is 2" in only(found["bad"])


def test_a_listener_is_reached_and_a_closed_port_is_not() -> None:
    listener = Listener("127.0.0.1")
    assert unreachable([listener.endpoint], 1) == {}
    listener.close()
    assert "refused" in unreachable([listener.endpoint], 1)["127.0.0.1"].lower()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:  # connections pile up unanswered
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        began = time.monotonic()
        assert unreachable([full.getsockname()], 0.5).keys() == {"127.0.0.1"}
        assert time.monotonic() - began < 60
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
    assert [line.split()[0] for line in result.output.splitlines()] == ["ok"] * 8
    assert "GPU 0" not in result.output, "reads as the number of a device"
    assert result.output.splitlines()[-1].split(maxsplit=2)[1:] == ["rehearsal", "2 made on 1 host"]
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
