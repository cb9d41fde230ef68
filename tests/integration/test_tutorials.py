"""The commands of the tutorials run as they stand, page after page in one folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cohorts import ROOT

from kdcl_dist.run.record import read_record
from kdcl_dist.run.storage import Folder

PAGES = ("digits", "own-data", "own-method", "mixed-cluster", "node-dies")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
#: What a block of commands is called that a reader's machine may not run, or not at once.
SLOW, NOT_HERE = "takes minutes", {"installation", "needs a cluster"}
LIMIT_S = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as the tutorials see it, whose digits train for fewer epochs."""
    folder = tmp_path_factory.mktemp("tutorials")
    shutil.copytree(ROOT / "examples" / "data", folder / "examples" / "data")
    recipe = (ROOT / "examples" / "digits.yaml").read_text()
    short = recipe.replace("epochs: 20\n", "epochs: 6\n").replace("[12, 17]", "[4, 5]")
    assert short.count("epochs: 6") == 1
    (folder / "examples" / "digits.yaml").write_text(short)
    return folder


def follow(page: str, folder: Path, title: str) -> None:
    """Write the files of a page and run its commands of that title, which stop at the first error."""
    text = (ROOT / "docs" / "tutorials" / f"{page}.md").read_text(encoding="utf-8")
    script = ["set -euo pipefail"]
    for language, named, block in BLOCK.findall(text):
        if language == "bash" and named == title:
            script.append(block)
        elif language in ("python", "yaml") and named:
            (folder / named).write_text(block)
        elif language == "bash":
            assert named in {"", SLOW, *NOT_HERE}, f"{page}: {named}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{page}:\n{done.stdout}"


def test_the_commands_of_the_tutorials_run(folder: Path) -> None:
    for page in PAGES:
        follow(page, folder, title="")
    assert (folder / "runs" / "first" / "report.html").is_file()
    assert (folder / "found.csv").read_text().count("\n") > 300
    first, dies = (read_record(Folder(str(folder / "runs" / name))) for name in ("first", "dies"))
    assert [cause["student"] for cause in dies["failures"]["causes"]] == ["small"]
    assert dies["results"] == first["results"]


@pytest.mark.slow
def test_the_commands_that_take_minutes_run(folder: Path) -> None:
    follow("own-method", folder, title=SLOW)
