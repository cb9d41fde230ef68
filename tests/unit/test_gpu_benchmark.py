"""The command of `benchmarks.gpu`: its parts are independent, limited, and kept as they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_cohort, gpu_mps
from benchmarks.gpu import Part, main
from benchmarks.gpu_mps import Mps, MpsError
from kdcl_dist.launch.devices import assign_devices
from kdcl_dist.utils.import_strings import load_object
from kdcl_dist.utils.process import is_over


def two(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    yield {"case": device.type, "quick": str(quick), "ms": 1.25}
    yield {"case": os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "no MPS"), "ms": 120.4}


def fails(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    yield {"case": "first"}
    raise ValueError("out of order")


def hangs(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    if not (pid := os.fork()):  # what a part starts ends with it
        time.sleep(600)
    yield {"case": str(pid)}
    Path(os.environ["HANGS"]).touch()
    time.sleep(600)


class Impatient(subprocess.Popen[bytes]):
    """A process whose time is up as soon as it hangs."""

    def wait(self, timeout: float | None = None) -> int:
        hangs = Path(os.environ["HANGS"])
        while timeout is not None and not hangs.exists() and self.poll() is None:
            time.sleep(0.05)
        if timeout is not None and self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return super().wait()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    here = Path(__file__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here.parent), *sys.path]))
    parts = {
        "equality": Part(f"{here.stem}:fails", 200),
        "settings": Part(f"{here.stem}:two", 200),
        "collectives": Part("no_such_module:rows", 200),
        "copies": Part(f"{here.stem}:hangs", 20),
    }
    monkeypatch.setenv("HANGS", str(tmp_path / "hangs"))
    monkeypatch.setattr(gpu.subprocess, "Popen", Impatient)
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--out", str(tmp_path / "page" / "gpu.md")])
    main()
    found: dict[str, Any] = json.loads((tmp_path / "page" / "gpu.json").read_text())
    return found | {"page": (tmp_path / "page" / "gpu.md").read_text()}


def test_a_part_that_fails_or_hangs_loses_neither_its_rows_nor_the_others(measured: dict[str, Any]) -> None:
    parts = measured["parts"]
    assert parts["equality"]["rows"] == [{"case": "first"}]
    assert "ValueError: out of order" in parts["equality"]["failed"]
    (row,) = parts["copies"]["rows"]
    assert "took longer than its 20 s" in parts["copies"]["failed"]
    for _ in range(1000):  # the kernel takes a moment
        if is_over(int(row["case"])):
            break
        time.sleep(0.02)
    else:
        pytest.fail("what the part has started lives on")
    assert parts["settings"]["rows"] == [
        {"case": "cpu", "quick": "False", "ms": 1.25},
        {"case": "no MPS", "ms": 120.4},
    ]
    assert parts["settings"]["failed"] is None
    assert "no_such_module" in parts["collectives"]["failed"]
    page = measured["page"]
    assert "| cpu | False | 1.25 |" in page
    assert "| no MPS |  | 120 |" in page
    assert page.count("Broke off after") == 3


def test_the_real_parts_can_be_imported() -> None:
    assert all(callable(load_object(part.rows)) for part in gpu.PARTS.values())


@pytest.mark.parametrize("pair", gpu_cohort.PAIRS, ids=lambda pair: pair.models[0])
def test_the_recipes_fit_one_gpu(pair: gpu_cohort.Pair, tmp_path: Path) -> None:
    device = torch.device("cuda")
    shared = gpu_cohort.recipe_of(pair, tmp_path, device, pair.models)
    assert assign_devices(shared, 1) == ["cuda:0", "cuda:0"]
    own = gpu_cohort.recipe_of(pair, tmp_path, device, [pair.models[1], "benchmarks.gpu_networks:Peer"])
    assert assign_devices(own, 1) == ["cuda:0", "cpu"]


CONTROL = """#!{python}
import os, pathlib, signal, sys, time
pipe = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
log = pathlib.Path(os.environ["CUDA_MPS_LOG_DIRECTORY"])
if sys.argv[1:] == ["-f"]:
    if {refuses}:
        (log / "control.log").write_text("no driver\\n")
        sys.exit(1)
    (pipe / "control").touch()
    while not (pipe / "quit").exists():
        time.sleep(0.02)
elif sys.stdin.read().startswith("quit"):
    (pipe / "quit").touch()
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *, refuses: bool) -> None:
    """Put a daemon that only waits for its end in the place of NVIDIA's."""
    control = folder / gpu_mps.CONTROL
    control.write_text(CONTROL.format(python=sys.executable, refuses=refuses))
    control.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_mps_ends_with_its_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MpsError, match="not installed"), Mps():
        pass
    install(monkeypatch, tmp_path, refuses=False)
    for name in ("START_S", "END_S"):
        monkeypatch.setattr(gpu_mps, name, 200.0)
    daemon = Mps()
    with daemon as environment:
        assert Path(environment["CUDA_MPS_PIPE_DIRECTORY"], "control").exists()
        assert daemon.process.poll() is None
    assert daemon.process.poll() == 0
    assert not Path(daemon.folder).exists()


def test_mps_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, refuses=True)
    daemon = Mps()
    with pytest.raises(MpsError, match="does not start no driver"), daemon:
        pass
    assert not Path(daemon.folder).exists()
