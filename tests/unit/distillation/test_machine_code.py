"""Where the compiled solver is kept, and that a start survives a folder that cannot keep it."""

from __future__ import annotations

import os
from pathlib import Path
from types import FunctionType

import numba
import numpy as np
import pytest
import torch

from kdcl_dist.distillation import machine_code


def tiny(logits_SBC, labels_B, shares_BC, out_BC, weights_SB, first, end):
    """In place of the solver, which takes seconds to compile."""
    for b in range(first, end):
        out_BC[b, 0] = logits_SBC[0, b, 0] + 1


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Compiles `tiny` anew, as another process would, with a cache in `tmp_path`."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine_code, "solve", tiny)
    yield machine_code._compiled.__wrapped__
    assert numba.config.CACHE_DIR == ""


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check(solver) -> None:
    out_BC = np.zeros((2, 1), np.float32)
    logits_SBC = np.ones((1, 2, 1), np.float32)
    solver(logits_SBC, np.zeros(2, np.int64), np.zeros((2, 0)), out_BC, np.zeros((1, 2)), 0, 2)
    assert out_BC.tolist() == [[2], [2]]


def test_the_next_process_reads_the_code(compiled, tmp_path: Path) -> None:
    first, second = compiled(torch.float32), compiled(torch.float32)
    check(first)
    check(second)
    assert sum(first.stats.cache_misses.values()) == 1
    assert sum(second.stats.cache_hits.values()) == 1
    made = files(tmp_path / "kdcl")
    assert {path.suffix for path in made} == {".nbi", ".nbc", ".py"}
    assert {path.relative_to(tmp_path / "kdcl").parts[0][:7] for path in made} == {"linear-"}
    assert compiled(torch.float64).stats.cache_hits == {}, "each type has a folder of its own"


def test_a_copy_of_the_package_elsewhere_reads_the_code_too(compiled, tmp_path: Path, monkeypatch) -> None:
    """Each job on a cluster has one."""
    for name in ("one", "two"):
        copy = tmp_path / name / "tiny.py"
        copy.parent.mkdir()
        copy.write_bytes(Path(__file__).read_bytes())
        placed = FunctionType(tiny.__code__.replace(co_filename=str(copy)), globals())
        monkeypatch.setattr(machine_code, "solve", placed)
        solver = compiled(torch.float32)
        check(solver)
    assert sum(solver.stats.cache_hits.values()) == 1


def test_code_of_other_sources_or_processors_is_not_read(tmp_path: Path, compiled, monkeypatch) -> None:
    before = machine_code.cache_folder(torch.float32)
    assert before is not None
    assert before == machine_code.cache_folder(torch.float32)
    assert before.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(numba.config, "CPU_NAME", "generic")
    other = machine_code.cache_folder(torch.float32)
    monkeypatch.setattr(numba.config, "CPU_NAME", None)
    monkeypatch.setattr(machine_code, "SOURCES", machine_code.SOURCES[:-1])
    assert len({before, other, machine_code.cache_folder(torch.float32)}) == 3


def test_the_sources_are_all_that_the_code_is_made_of() -> None:
    folder = Path(machine_code.__file__).parent
    found, queue = set(), ["linear.py"]
    while queue:
        if (name := queue.pop()) not in found:
            found.add(name)
            text = (folder / name).read_text()
            queue += [
                f"{line.split()[1].rpartition('.')[2]}.py"
                for line in text.splitlines()
                if "from kdcl" in line
            ]
    assert found == set(machine_code.SOURCES)


@pytest.mark.parametrize("damage", [b"", b"garbage"])
def test_damaged_code_is_compiled_again(compiled, tmp_path: Path, damage: bytes) -> None:
    compiled(torch.float32)
    for path in files(tmp_path):
        path.write_bytes(damage)
    check(compiled(torch.float32))
    compiled(torch.float32)
    assert sum(compiled(torch.float32).stats.cache_hits.values()) == 1


def test_without_a_folder_the_code_stays_in_memory(compiled, tmp_path: Path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert machine_code.cache_folder(torch.float32) is None
    check(compiled(torch.float32))
    assert files(tmp_path) == [blocked]


def test_a_folder_of_somebody_else_is_not_read(compiled, monkeypatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: -1)
    assert machine_code.cache_folder(torch.float32) is None


def test_a_folder_to_which_others_can_write_is_not_read(compiled) -> None:
    folder = machine_code.cache_folder(torch.float32)
    assert folder is not None
    folder.chmod(0o770)
    assert machine_code.cache_folder(torch.float32) is None


def test_the_users_own_folder_of_numba_counts(compiled, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "own"))
    folder = machine_code.cache_folder(torch.float32)
    assert folder is not None
    assert folder.parent == tmp_path / "own"
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
