"""The files under cluster/: valid, of this version, without secrets, and their commands are commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from cohorts import ROOT
from commands import check, commands_in

from kdcl_dist.launch.ray.jobs import RUNTIME_ENV
from kdcl_dist.version import __version__

CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
YAML = [path for path in FILES if path.suffix == ".yaml" and path.parent.name != "templates"]
SCRIPTS = [path for path in FILES if path.suffix in (".sh", ".sbatch")]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_yaml_is_valid(path: Path) -> None:
    assert isinstance(load(path), dict)


# -- other launchers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_ray_up_files(name: str) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = load(CLUSTER / "ray-up" / f"{name}.yaml")
    jsonschema.validate(config, schema)
    workers = {k: v for k, v in config["available_node_types"].items() if k != config["head_node_type"]}
    assert len({kind["labels"]["ray.io/accelerator-type"] for kind in workers.values()}) == 2
    assert "spot" in json.dumps(list(workers.values())).lower()
    assert config["docker"]["image"].endswith(f":{__version__}")
    (start,) = (line for line in config["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in start


def test_compose() -> None:
    config = load(CLUSTER / "compose" / "compose.yaml")
    head = config["services"]["head"]
    assert all(port.startswith("127.0.0.1:") for port in head["ports"])
    assert not [name for name, service in config["services"].items() if name != "head" and "ports" in service]
    for service in config["services"].values():
        assert service["image"].endswith(f":{__version__}")
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert load(CLUSTER / "compose" / "gpu.yaml")["services"].keys() <= config["services"].keys()


def test_sky() -> None:
    config = load(CLUSTER / "sky.yaml")
    assert config.keys() == {"name", "num_nodes", "workdir", "resources", "envs", "secrets", "setup", "run"}
    assert config["resources"]["use_spot"]
    assert config["secrets"] == {"RAY_AUTH_TOKEN": None}
    assert "--secret RAY_AUTH_TOKEN " in (CLUSTER / "sky.yaml").read_text()  # its value is on no command line
    for script in (config["setup"], config["run"]):
        lint(script)


def test_sky_takes_the_file() -> None:
    """SkyPilot's schema. It wants an older click: `pip install --target FOLDER skypilot`, on PYTHONPATH."""
    schemas = pytest.importorskip("sky.utils.schemas", reason="needs SkyPilot")
    config = load(CLUSTER / "sky.yaml")
    jsonschema.validate(config, schemas.get_task_schema())
    jsonschema.validate(config["resources"], schemas.get_resources_schema())


@pytest.mark.parametrize(
    ("codes", "calls", "code"),
    [
        ((2, 0), ["--resume", ""], 0),  # a new run
        ((2, 2), ["--resume", ""], 2),  # a mistake
        ((0,), ["--resume"], 0),  # after a node was lost
        ((1,), ["--resume"], 1),  # a run that failed
    ],
)
def test_a_job_of_sky_goes_on(codes: tuple[int, ...], calls: list[str], code: int, tmp_path: Path) -> None:
    """With stand-ins for `ray` and `kdcl`, on the first of the nodes."""
    tools = tmp_path / "kdcl" / "bin"
    tools.mkdir(parents=True)
    (tmp_path / "codes").write_text("".join(f"{each}\n" for each in codes))
    write_script(tools / "ray", '[ "$1" = status ] || exec sleep 600')
    lines = ['echo "${*: -1}" >> ~/calls', "code=$(head -n1 ~/codes)", "sed -i 1d ~/codes", 'exit "$code"']
    write_script(tools / "kdcl", *lines)
    nodes = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    config = load(CLUSTER / "sky.yaml")
    environment = {**os.environ, **config["envs"], **nodes, "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", config["run"]], env=environment, timeout=300, check=False)
    assert done.returncode == code
    found = (tmp_path / "calls").read_text().split()
    assert found == [call or config["envs"]["RUN"] for call in calls]


def write_script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


def test_the_runtime_environment_is_that_of_kdcl_submit() -> None:
    assert load(CLUSTER / "runtime_env.yaml") == RUNTIME_ENV


# -- scripts and commands -------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts(path: Path) -> None:
    lint(path.read_text())


def lint(script: str) -> None:
    command = ["shellcheck", "--shell=bash", "-"] if shutil.which("shellcheck") else ["bash", "-n"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_of_the_image() -> None:
    workflow = load(ROOT / ".github/workflows/image.yml")
    assert workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read", "packages": "write"}
    for step in job["steps"]:
        assert "${{" not in step.get("run", ""), "what a person typed is no part of a script"
        lint(step.get("run", ""))
    assert [line for step in job["steps"] for line in commands_in(step.get("run", ""))]


def test_the_script_says_how_it_is_used(tmp_path: Path) -> None:
    script = str(CLUSTER / "on-premises" / "cluster.sh")
    hosts = str(CLUSTER / "on-premises" / "hosts.txt")
    (tmp_path / "none").write_text("# nobody\n")
    for arguments in ([], ["up"], ["begin", hosts], ["up", str(tmp_path / "missing")]):
        done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "cluster.sh install HOSTS" in done.stderr
    done = subprocess.run(
        ["bash", script, "up", str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, f"cluster.sh: no host in {tmp_path / 'none'}\n")


def commands() -> list[str]:
    """Every `kdcl ...` that a script or manifest runs; tests/unit/test_docs.py has those of documents."""
    found: list[str] = []
    for path in FILES:
        if path in YAML:
            found += commands_in("\n".join(_strings(load(path))))
        elif path.suffix not in (".md", ".yaml", ".txt"):
            found += commands_in(path.read_text())
    return sorted(set(found))


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for child in value.values() for text in _strings(child)]
    if isinstance(value, list):
        return [text for child in value for text in _strings(child)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("line", commands())
def test_commands_are_commands(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check(line.replace('"${resume[@]}"', "--resume").replace('"$@"', "--resume").removesuffix("&"))


def test_there_are_commands() -> None:
    assert any('"$RUNS"' in line for line in commands())
    assert any('"$RUN"' in line for line in commands())


# -- secrets and versions -------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_secret_and_no_open_door(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(RAY_AUTH_TOKEN|auth_token|password|secret_key)\s*[:=]\s*[\"']?\w{8,}", text, re.I)
    assert "RAY_AUTH_MODE=disabled" not in text
    if path.name != "compose.yaml":  # there only this machine is let through to it
        assert "dashboard-host=0.0.0.0" not in text
    if "ray start" in text and path.suffix != ".md":
        assert "RAY_AUTH_MODE" in text
