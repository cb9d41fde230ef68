"""How a process of a run is set up."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdcl_dist.run.process import set_determinism, use_root


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(Path.cwd())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_relative_paths_and_import_strings_start_at_the_root(tmp_path: Path) -> None:
    for _ in range(2):
        use_root(str(tmp_path))
    assert Path.cwd() == tmp_path
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[0] == str(tmp_path)


def test_a_root_that_this_host_lacks_changes_no_folder(tmp_path: Path) -> None:
    before = Path.cwd()
    use_root(str(tmp_path / "elsewhere"))
    assert Path.cwd() == before


def test_determinism_is_a_choice() -> None:
    set_determinism(False)
    assert torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    set_determinism(True)
    assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
