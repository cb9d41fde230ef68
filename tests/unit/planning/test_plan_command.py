"""The command `kdcl plan` with given costs, and its errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from cohorts import ROOT
from commands import assert_one_line

from kdcl_dist.cli import kdcl


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(kdcl, ["plan", str(ROOT / "examples/digits.yaml"), *arguments])


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


GIVEN = ("--given", "large=0.1", "--given", "small=0.02", "--given", "mlp=0.01", "--given", "ensemble=0.005")


def test_given_figures_need_no_measuring() -> None:
    result = plan(*GIVEN, "--workers", "6")
    assert result.exit_code == 0, result.output
    assert result.output == EXPECTED


def test_a_name_with_a_dot_is_given_by_its_number(tmp_path: Path) -> None:
    """A path of --set has dots between its parts."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((ROOT / "examples/digits.yaml").read_text().replace("name: large", "name: net.v1"))
    given = [text.replace("large", "net.v1") for text in GIVEN]
    found = CliRunner().invoke(kdcl, ["plan", str(recipe), *given, "--workers", "6"])
    assert found.exit_code == 0, found.output
    (setting,) = re.findall(r"--set (students\.0\.replicas=\d)", found.output)
    again = CliRunner().invoke(kdcl, ["plan", str(recipe), *given, "--workers", "6", "--set", setting])
    assert again.exit_code == 0, again.output


EXPECTED = """\
digits: batch of 64; nothing measured here, the rest given or default

one worker alone  device  rows  data ms  compute ms
large             1 core    64      0.0       100.0
small             1 core    64      0.0        20.0
mlp               1 core    64      0.0        10.0

as it is: step 105.6 ms, of which exchange and ensemble 5.6 ms; 3 workers, idle 59.0%
student  replicas  rows each  busy ms   idle
large           1         64    100.0   5.3%
small           1         64     20.0  81.1%
mlp             1         64     10.0  90.5%

proposal within 6 workers: step 32.1 ms, of which exchange and ensemble 6.2 ms; 6 workers, idle 30.7%
student  replicas  rows each  busy ms   idle
large           4         16     25.8  19.5%
small           1         64     20.0  37.6%
mlp             1         64     10.0  68.8%

3.29 times as fast: --set students.large.replicas=4
"""


def test_the_spares_of_a_run_are_told() -> None:
    result = plan(*GIVEN, "--set", "failure.spares=2", "--set", "students.large.resources.cpu=4")
    more = "failure.spares: on Ray 4 more workers wait to take over (2 of CPU 4; 2 of CPU 1)"
    assert more in result.output.splitlines()


def test_a_file_of_logits_needs_no_worker() -> None:
    result = plan("--set", "students.mlp={name: mlp, logits: t.arrow}", *GIVEN, "--workers", "2")
    assert result.exit_code == 0, result.output
    assert "proposal within 2 workers: none is better" in result.output


def test_a_part_of_a_step_is_planned() -> None:
    result = plan(*GIVEN, "--set", "accumulate=4")
    assert "accumulate: a step here is one of the 4 parts of the run's step, 16 samples" in result.output
    assert re.search(r"large +1 core +16 +0\.0 +100\.0", result.output)


def test_the_device_is_that_of_students_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    number = ("--set", "students.small.resources.gpu=0", "--set", "students.mlp.resources.gpu=0.5")
    for chosen, large in (("auto", "GPU"), ("cuda", "GPU"), ("cpu", "1 core")):
        result = plan(*GIVEN, *number, "--device", chosen)
        assert result.exit_code == 0, result.output
        table = [re.split(r" {2,}", line) for line in result.output.splitlines()[3:6]]
        assert {row[0]: row[1] for row in table} == {"large": large, "small": "1 core", "mlp": "0.5 GPU"}


def test_a_device_that_is_not_there() -> None:
    assert_one_line(plan(*GIVEN, "--device", "cuda"), "--device cuda: this machine has no GPU")


def test_cores_and_a_fixed_part() -> None:
    result = plan(*GIVEN, "--given", "large@32=0.09", "--workers", "6", "--cores", "2")
    assert result.exit_code == 0, result.output
    assert "they ask for 3 threads and share 2 cores" in result.output
    assert "none is better" in result.output


def test_a_given_link() -> None:
    result = plan(*GIVEN, "--link", "0.01:1e12")  # 3 messages and 3 answers
    assert "step 165.0 ms, of which exchange and ensemble 65.0 ms" in result.output


def test_data_elsewhere() -> None:
    result = plan(*GIVEN, "--set", "data.train=/elsewhere/train.arrow")
    assert result.exit_code == 0, result.output
    assert "data.train cannot be opened here: 1000 classes are assumed" in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--given", "huge=1"], "no student is named 'huge' (have large, small, mlp)"),
        (["--given", "large"], "NAME=SECONDS or NAME@ROWS=SECONDS is needed"),
        (["--given", "large=-1"], "'-1' is not a positive number of seconds"),
        (["--given", "large=nan"], "'nan' is not a positive number of seconds"),
        (["--given", "large=soon"], "'soon' is not a positive number of seconds"),
        (["--given", "large@0=1"], "'0' is not a number of samples from 1"),
        (["--given", "large@1.5=1"], "'1.5' is not a number of samples from 1"),
        ([*GIVEN, "--link", "fast"], "--link 'fast': SECONDS:BYTES is needed, latency and bytes a second"),
        ([*GIVEN, "--link", "0.1:0"], "SECONDS:BYTES is needed"),
        (["--workers", "2"], "--workers: 2 cannot hold 3 students; each needs one"),
        (["--workers", "-1"], "--workers: -1 cannot hold 3 students; each needs one"),
        (["--set", "batchsize=3"], "batchsize"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], expected: str) -> None:
    result = plan(*arguments)
    assert result.exit_code == 2
    assert expected in result.output
    assert result.output.startswith("kdcl: error: ")
    assert len(result.output.splitlines()) == 1
