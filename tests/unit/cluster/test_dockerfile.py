"""The image: static checks, and on demand a real build with a run inside.

The real build takes minutes and 15 GB, and needs root, buildah and debootstrap:
`.venv/bin/python -m pytest -m slow tests/unit/cluster/test_dockerfile.py`.
"""

from __future__ import annotations

import http.server
import os
import re
import runpy
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cohorts import ROOT

from kdcl_dist.version import __version__

TEXT = (ROOT / "Dockerfile").read_text()
HEALTH = runpy.run_path(str(ROOT / "cluster" / "healthcheck.py"))
FREE_GB = 25


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def stage(number: int) -> list[tuple[str, str]]:
    """The instructions of a stage, FROM included."""
    starts = [place for place, (name, _) in enumerate(instructions()) if name == "FROM"]
    return instructions()[starts[number] : [*starts, None][number + 1]]


def test_stages() -> None:
    assert instructions()[0][0] == "ARG"
    assert re.fullmatch(r"BASE=\S+:3\.11\.\d+-slim-\w+", instructions()[0][1]), "a pinned base"
    assert [value for name, value in instructions() if name == "FROM"] == ["${BASE} AS build", "${BASE}"]


def test_the_last_stage_runs_as_nobody_special_and_builds_nothing() -> None:
    last = stage(1)
    names = [name for name, _ in last]
    assert dict(last)["USER"] == "1000:1000"
    after = last[names.index("USER") :]
    assert "RUN" not in [name for name, _ in after]
    for name, value in last:
        if name == "RUN" and not value.startswith('[ -z "${EXTRAS}" ] || '):  # for `ray up` only
            assert not re.search(r"\b(pip|apt|apt-get|gcc|make|curl|wget)\b", value)
        assert name != "ADD"
    assert "HEALTHCHECK" in names
    labels = dict(item.split("=", 1) for item in shlex.split(dict(last)["LABEL"]))
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert "RAY_AUTH_MODE=token" in dict(last)["ENV"] or any("RAY_AUTH_MODE=token" in v for _, v in last)


def test_versions_are_pinned_and_layers_ordered() -> None:
    """The dependencies' layer comes before the first that changes with the code."""
    steps = [f"{name} {value}" for name, value in stage(0)]
    (dependencies,) = (place for place, step in enumerate(steps) if "--constraint constraints.txt" in step)
    code = steps.index("COPY kdcl_dist kdcl_dist")
    assert dependencies < code
    installs = [step for step in steps if "pip install" in step]
    assert all("--constraint" in step or "--no-deps" in step for step in installs)


def test_what_is_copied_exists_and_is_sent() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    for name, value in instructions():
        words = [word for word in value.split() if not word.startswith("--chown")]
        if name == "COPY" and not words[0].startswith("--from"):
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignore, source
    assert not any(line.startswith(("!.git", "!runs", "!tests")) for line in ignore)


@pytest.fixture
def agent() -> Iterator[http.server.HTTPServer]:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthy" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_health(agent: http.server.HTTPServer) -> None:
    main = HEALTH["main"]
    scope = main.__globals__
    url = f"http://127.0.0.1:{agent.server_port}"
    for runs, path, code in ((False, "/none", 0), (True, "/healthy", 0), (True, "/ill", 1)):
        scope["runs_ray"], scope["URL"] = (lambda runs=runs: runs), url + path
        assert main() == code
    scope["URL"] = "http://127.0.0.1:1/"
    assert main() == 1


def _why_not_built() -> str | None:
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        return f"needs root and {', '.join(missing) or 'no more'}"
    free = shutil.disk_usage("/tmp").free / 2**30
    return f"needs {FREE_GB} GB of disk, there are {free:.0f}" if free < FREE_GB else None


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[list[str]]:
    """A buildah with a store of its own, which is emptied: it holds many gigabytes."""
    command = ["buildah", "--root", str(tmp_path / "images"), "--runroot", str(tmp_path / "run")]
    yield command
    _call(*command, "rm", "--all")
    _call(*command, "rmi", "--all", "--force")
    subprocess.run(["umount", str(tmp_path / "images" / "overlay")], capture_output=True, check=False)
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(_why_not_built() is not None, reason=str(_why_not_built()))
def test_a_real_build_trains(tmp_path: Path, buildah: list[str]) -> None:
    """On a bare Debian 12, whose Python is 3.11 too: no registry of images is needed."""
    base = tmp_path / "base"
    include = "--include=python3,python3-venv,ca-certificates"
    _call("debootstrap", "--variant=minbase", include, "bookworm", str(base))
    container = _call(*buildah, "from", "scratch").strip()
    _call(*buildah, "add", "--quiet", container, str(base), "/")
    _call(*buildah, "commit", "--quiet", container, "localhost/base")
    certificates = "--volume=/etc/ssl/certs:/etc/ssl/certs:ro"
    arguments = ["--isolation=chroot", "--build-arg=BASE=localhost/base", certificates]
    _call(*buildah, "bud", *arguments, "--format=docker", "--tag=localhost/kdcl", str(ROOT))
    container = _call(*buildah, "from", "localhost/kdcl").strip()
    run = [*buildah, "run", "--isolation=chroot", container, "--"]
    line = "kdcl train examples/digits.yaml --launcher local --storage /tmp/runs --name r --set epochs=1"
    assert "run folder: /tmp/runs/r" in _call(*run, *line.split())
    assert _call(*run, "id", "--user").strip() == "1000"
    assert _call(*run, "bash", "--login", "-c", "ray --version").startswith("ray, version")
    _call(*run, "python", "-c", "import runpy; runpy.run_path('/opt/kdcl/healthcheck.py')")
    compilers = "gcc cc g++ clang make nvcc"
    assert not _call(*run, "bash", "-c", f"command -v {compilers} || true").strip()


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
