"""The bank: against a dictionary, in memory and in a file, whole and in part; and room for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cohorts import Cohort, MakeRecipe
from reports import REPORT
from torch import Tensor

from kdcl_dist.cli import kdcl
from kdcl_dist.config.differences import differences
from kdcl_dist.config.recipe_file import dump_recipe
from kdcl_dist.coordinator import logit_bank as bank_module
from kdcl_dist.coordinator.logit_bank import LogitBank, bank_bytes, make_bank
from kdcl_dist.errors import PreflightError, RecipeError
from kdcl_dist.launch.preflight import bank_memory, checks
from kdcl_dist.launch.preflight.bank_memory import BankMemory, measure_bank_memory
from kdcl_dist.run.events import Event, Note
from kdcl_dist.run.run import Run
from kdcl_dist.training import train

S, N, C = 3, 40, 6


def visits(bank: LogitBank, steps: int = 30) -> dict[tuple[int, int], tuple[int, Tensor]]:
    """Put random rows for some steps, and into a dictionary too: (student, id) to (step, logits)."""
    generator, found = torch.Generator().manual_seed(steps), {}
    for step in range(steps):
        for student in range(S):
            ids = torch.randperm(N - 5, generator=generator)[:4]
            logits = 5 * torch.randn(4, C, generator=generator)
            bank.put(student, ids, logits, step)
            found |= {(student, int(i)): (step, z) for i, z in zip(ids, logits, strict=True)}
    return found


@pytest.mark.parametrize("in_a_file", [False, True])
@pytest.mark.parametrize("oldest", [None, 0, 7])
def test_the_newest_of_each_and_its_age(in_a_file: bool, oldest: int | None, tmp_path: Path) -> None:
    folder = str(tmp_path) if in_a_file else None
    bank = LogitBank(S, N, C, folder=folder, max_staleness=oldest)
    expected = visits(bank)
    assert list(tmp_path.iterdir()) == [], (
        "a file with a name would be left behind by a process that is killed"
    )
    ids = torch.randperm(N)
    logits, age = bank.latest(ids, 31)
    assert (logits.dtype, logits.shape, age.shape) == (torch.float32, (S, N, C), (S, N))
    seen = 0
    for student in range(S):
        for row, sample in enumerate(ids.tolist()):
            step, z = expected.get((student, sample), (-math.inf, None))
            if 31 - step > (math.inf if oldest is None else oldest) or z is None:
                assert age[student, row] == -1
                continue
            seen += 1
            assert age[student, row] == 31 - step
            assert torch.equal(logits[student, row], (z - z.max()).half().float())
    assert (seen > 0) == (oldest != 0)
    bank.close()


def test_logits_that_half_precision_cannot_hold() -> None:
    bank = LogitBank(1, 3, 3)
    bank.put(0, torch.tensor([0, 1, 2]), torch.tensor([[1e6, 0, -3e38], [3e38, 3e38, 1], [-1e5] * 3]), 0)
    logits, _ = bank.latest(torch.arange(3), 0)
    assert logits[0].tolist() == [[0, -65504, -65504], [0, 0, -65504], [0, 0, 0]]


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_the_largest_are_kept_and_the_rest_shared(top_k: int) -> None:
    bank = LogitBank(1, 8, C, top_k=top_k)
    z = 4 * torch.randn(8, C, generator=torch.Generator().manual_seed(0))
    bank.put(0, torch.arange(8), z, 0)
    found = bank.latest(torch.arange(8), 0)[0][0].softmax(dim=1)
    for row in range(8):
        p = z[row].softmax(dim=0)
        order = p.argsort(descending=True).tolist()
        for place, c in enumerate(order):
            share = p[order[top_k:]].sum() / (C - top_k)
            assert float(found[row, c]) == pytest.approx(float(p[c] if place < top_k else share), rel=5e-3)


@pytest.mark.parametrize("top_k", [C, C + 3])
def test_as_many_as_there_are_is_all(top_k: int) -> None:
    some, whole = LogitBank(S, N, C, top_k=top_k), LogitBank(S, N, C)
    assert visits(some).keys() == visits(whole).keys()
    assert torch.equal(some.latest(torch.arange(N), 40)[0], whole.latest(torch.arange(N), 40)[0])


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("oldest", [None, 4])
def test_parts_bring_it_back(
    top_k: int | None, oldest: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bank_module, "PART_BYTES", 100)
    bank = LogitBank(S, N, C, top_k=top_k, max_staleness=oldest)
    expected = visits(bank)
    parts = dict(bank.parts(30))
    assert all(name.startswith("_bank-") for name in parts)
    rows = {name: len(part["ids"]) for name, part in parts.items()}
    assert max(rows.values()) <= 100 // 12, "parts are small, whatever the bank is"
    live = sum(30 - step <= (math.inf if oldest is None else oldest) for step, _ in expected.values())
    assert sum(rows.values()) == live, "what is too old is not written"
    again = LogitBank(S, N, C, top_k=top_k, max_staleness=oldest, folder=str(tmp_path))
    for name, part in parts.items():
        torch.save(part, tmp_path / name)
        again.load(torch.load(tmp_path / name, weights_only=True))
    (left, age), (right, other) = (each.latest(torch.arange(N), 30) for each in (bank, again))
    assert torch.equal(age, other)
    assert torch.equal(left[age >= 0], right[age >= 0])
    assert int((age >= 0).sum()) == live


def test_labels_that_contradict() -> None:
    bank = LogitBank(S, N, C)
    assert bank.contradicts(torch.tensor([3, 1, 2]), torch.tensor([0, 5, 2])).tolist() == []
    assert bank.contradicts(torch.tensor([4, 1, 3, 2]), torch.tensor([0, 4, 0, 1])).tolist() == [1, 3]
    assert bank.contradicts(torch.tensor([4, 1]), torch.tensor([1, 5])).tolist() == [0]


@pytest.mark.parametrize(("classes", "top_k"), [(10, None), (10, 10), (10, 3), (1000, 20), (40000, 8)])
def test_its_size_is_told_right(classes: int, top_k: int | None) -> None:
    bank = LogitBank(2, 11, classes, top_k=top_k)
    arrays = [*bank.fields.values(), bank.steps, bank.labels]
    assert sum(array.nbytes for array in arrays) == bank_bytes(2, 11, classes, top_k)


def test_the_size_of_imagenet() -> None:
    assert bank_bytes(1, 1_281_167, 1000) == 1_281_167 * (1000 * 2 + 4 + 4)


# -- room ----------------------------------------------------------------------------------------


def test_no_window_no_bank(make_recipe: MakeRecipe) -> None:
    for overrides in ([], ["distillation.window=4", "distillation.method=none"]):
        assert measure_bank_memory(make_recipe(*overrides), 10**9, 1000) is None
        assert make_bank(make_recipe(*overrides), 10**9, 1000) is None


def test_room_in_memory(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = make_recipe("distillation.window=4")
    found = measure_bank_memory(recipe, 60, 4)
    assert found is not None
    assert found.lack is None
    assert 0 < (found.free or 0) < 1 << 50
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:       1 kB\n")
    monkeypatch.setattr(bank_memory, "MEMINFO", meminfo)
    monkeypatch.setattr(bank_memory, "CGROUP", tmp_path)
    small = measure_bank_memory(recipe, 60, 4)
    assert small is not None
    assert (small.needed, small.free) == (2 * 60 * 12 + 240, 1024)
    kept = make_recipe("distillation.window=4", "checkpoint.in_memory_every_steps=9")
    assert measure_bank_memory(kept, 60, 4).needed == 3 * small.needed  # type: ignore[union-attr]
    assert small.lack == (
        "2 students, 60 samples, 4 classes: 0.0 MB in memory, 0.0 MB free; set distillation.bank.folder, for "
        "a file, or a small distillation.bank.top_k"
    )
    (tmp_path / "memory.max").write_text("900\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert measure_bank_memory(recipe, 60, 4).free == 500  # type: ignore[union-attr]
    (tmp_path / "memory.max").write_text("max\n")
    assert measure_bank_memory(recipe, 60, 4).free == 1024  # type: ignore[union-attr]
    meminfo.unlink()
    unknown = measure_bank_memory(recipe, 60, 4)
    assert unknown is not None
    assert (unknown.free, unknown.lack) == (None, None)


def test_room_on_a_disk(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("distillation.window=4", f"distillation.bank.folder={tmp_path}")
    assert measure_bank_memory(recipe, 60, 4).lack is None  # type: ignore[union-attr]
    huge = measure_bank_memory(recipe, 10**12, 1000)
    assert huge is not None
    assert "another distillation.bank.folder" in (huge.lack or "")
    gone = make_recipe("distillation.window=4", "distillation.bank.folder=/nowhere")
    assert "'/nowhere' is no folder" in (measure_bank_memory(gone, 60, 4).lack or "")  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"distillation\.bank\.folder: '/nowhere'"):
        make_bank(gone, 60, 4)
    assert differences(recipe, gone) == [], "where it lies changes no result"
    assert differences(recipe, make_recipe("distillation.window=4", "distillation.bank.top_k=2"))


def test_preflight_looks_for_room(make_recipe: MakeRecipe) -> None:
    assert checks.bank([REPORT]) == []
    (check,) = checks.bank([replace(REPORT, bank_memory=BankMemory("2 students", 5, None, 9))])
    assert not check.failures
    (check,) = checks.bank([replace(REPORT, bank_memory=BankMemory("2 students", 9, None, 5)), REPORT])
    assert check.failures
    assert "top_k" in check.failures[0]


def test_the_command_line_tells_in_one_line(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(make_recipe("distillation.window=4", "distillation.bank.folder=/nowhere")))
    for command in (["train", "--name", "r"], ["preflight"]):
        arguments = [command[0], str(path), "--launcher", "local", "--storage", str(tmp_path / "runs")]
        result = CliRunner().invoke(kdcl, [*arguments, *command[1:]])
        assert result.exit_code == 2, result.output
        (line,) = [line for line in result.output.splitlines() if "error" in line or "is no folder" in line][
            -1:
        ]
        assert "distillation.bank.folder: '/nowhere' is no folder of the coordinator's host" in line
    assert not (tmp_path / "runs" / "r").exists()


def test_its_size_is_told_before_the_start(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_memory, "_free_memory", lambda: 10)
    told: list[Event] = []
    with pytest.raises(PreflightError, match="bank of logits"):
        train(make_recipe("distillation.window=3"), launcher="local", on_event=told.append)
    size = "bank of logits: 2 students, 60 samples, 4 classes: 0.0 MB in memory, 0.0 MB free"
    assert told == [Note(size)]


def test_a_run_with_a_file_and_the_largest_logits(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    """What is kept changes the result; where it is kept does not; nothing is left of the file."""
    folder = tmp_path / "bank"
    folder.mkdir()
    overrides = ["distillation.window=epoch", "batch_size=7"]
    runs = [
        make_run(make_recipe(*overrides, *more))
        for more in ([], [f"distillation.bank.folder={folder}"], ["distillation.bank.top_k=1"])
    ]
    for run in runs:
        assert not Cohort(run).train().errors
    whole, file, top = (
        torch.load(f"{run.folder.local}/checkpoints/step-00000016/b.pt", weights_only=True)["model"]
        for run in runs
    )
    assert all(torch.equal(whole[key], file[key]) for key in whole)
    assert not all(torch.equal(whole[key], top[key]) for key in whole)
    assert list(folder.iterdir()) == []


def test_time_does_not_grow_with_the_data_set() -> None:
    """Rows are looked up directly: a bank that is searched would take 1000 times as long."""

    def fastest(samples: int) -> float:
        bank, ids, found = LogitBank(2, samples, 10), torch.randint(samples, (64,)), []
        for step in range(30):
            began = time.perf_counter()
            bank.put(0, ids, torch.zeros(64, 10), step)
            bank.latest(ids, step)
            found.append(time.perf_counter() - began)
        return float(np.min(found))

    assert fastest(1_000_000) < 20 * fastest(1_000)
