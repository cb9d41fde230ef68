"""The wheel and the source package: what they hold, and the demo from them, outside any checkout."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from cohorts import ROOT
from readme_renderer.markdown import render

from kdcl_dist.version import __version__


def call(*command: str | Path, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both; `build` makes the wheel from the source package."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    for name in files:
        shutil.copy(ROOT / name, source)
    for name in ("kdcl_dist", "release", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    return out


def wheel_of(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob(f"kdcl_dist-{__version__}-py3-none-any.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_package_and_its_data_only(built: Path) -> None:
    with wheel_of(built) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    info = f"kdcl_dist-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"kdcl_dist", info}
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "kdcl_dist").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("kdcl_dist/")} == ours
    assert f"{info}/licenses/LICENSE" in names


def test_the_source_package_has_no_tests(built: Path) -> None:
    with tarfile.open(built / f"kdcl_dist-{__version__}.tar.gz") as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert "release/index.md" in names
    assert [name for name in names if name.split("/")[0] in ("tests", "examples", "benchmarks")] == []


def test_the_index_can_show_it(built: Path) -> None:
    with wheel_of(built) as wheel:
        metadata = email.message_from_bytes(wheel.read(f"kdcl_dist-{__version__}.dist-info/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    text = metadata.get_payload()
    assert "](docs/" not in text, "the index has no other files of the project"
    assert "kdcl demo" in re.sub(r"<[^>]*>", "", render(text) or ""), "the page, without its colours"


def test_the_demo_trains_without_a_checkout(built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.whl")
    target = tmp_path / "site"
    quiet = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    call(sys.executable, "-m", "pip", "install", *quiet, "--target", target, path)
    options = {
        "cwd": tmp_path,
        "env": {**os.environ, "PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": ""},
    }
    kdcl = target / "bin" / "kdcl"
    assert call(kdcl, "--version", **options).split()[-1] == __version__
    where = call(sys.executable, "-c", "import kdcl_dist; print(kdcl_dist.__file__)", **options)
    assert where.strip() == str(target / "kdcl_dist" / "__init__.py")
    short = ["epochs=1", "data.augment=[]", "distillation.method=mean", "students.large=null"]
    sets = [part for text in short for part in ("--set", text)]
    shown = call(kdcl, "demo", "--launcher", "local", "--name", "first", *sets, **options)
    assert shown.splitlines()[-1] == f"run folder: {tmp_path}/runs/first"
    assert (tmp_path / "runs" / "first" / "run.json").exists()
