"""Which students hold up steps by waiting for their data, and what would do."""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from reporting import make_recipe, write_run

from kdcl_dist.report.page import page
from kdcl_dist.report.run_data import load
from kdcl_dist.report.run_view import run_view
from kdcl_dist.run.data_wait import TIMES, data_wait, read_data_wait

Times = dict[str, float]


def times(step_ms: float, wait_ms: float, data_ms: float, load_ms: float) -> Times:
    values = (step_ms, wait_ms, data_ms, load_ms)
    return {name: value / 1000 for name, value in zip(TIMES, values, strict=True)}


#: Small computes 20 ms and loads for 30; big computes 20 ms.
SLOW_DATA = {"big": times(50, 29, 1, 1), "small": times(50, 0, 30, 30)}


def placed(cores: int | None, device: str = "cpu", **hosts: str) -> dict[str, dict[str, Any]]:
    known = {} if cores is None else {"cores": cores}
    return {name: {"host": hosts.get(name, "h"), "device": device} | known for name in ("big", "small")}


def line(times: dict[str, Times], *overrides: str, cores: int | None = None, **hosts: str) -> str | None:
    return data_wait(make_recipe(*overrides), placed(cores, **hosts), times)


def test_the_student_that_holds_up_the_others_is_named() -> None:
    told = "waiting for data: small 60% of a step (30 of 50 ms); data.loader_workers: 2 would do (now 0)"
    assert line(SLOW_DATA) == line(SLOW_DATA, cores=8) == told


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"big": times(50, 0, 1, 1), "small": times(50, 10, 30, 30)},  # it loads while its peer computes
        {"big": times(50, 0, 4, 4)},  # less than a tenth
        {"big": times(50, 0, 50, 50)},  # nothing is known of what else it needs
        {"big": {"step_s": 0.05, "wait_s": 0.0, "data_s": 0.03}},  # recorded by an older version
        {"big": times(50, 0, 30, float("nan"))},
        {"big": times(50, 0, 30, 1e300)},
        {"big": times(50, 0, 30, -1)},
    ],
)
def test_nothing_is_said_where_nothing_is_to_be_said(found: dict[str, Times]) -> None:
    assert line(found) is None


@pytest.mark.parametrize(("load_ms", "wanted"), [(5, 4), (90, 5), (300, 17)])
def test_processes_must_keep_up_with_the_step_without_waits(load_ms: float, wanted: int) -> None:
    """A step takes 20 ms besides: 300 ms a batch need 15 processes, and a tenth more. There are three now."""
    found = {"small": times(60, 0, 40, load_ms)}
    told = line(found, "data.loader_workers=3")
    assert told is not None
    assert told.endswith(f"data.loader_workers: {wanted} would do (now 3)")


def test_batches_that_lay_ready_hide_no_wait() -> None:
    """In a dry run of a few steps the first batches are loaded before the first step."""
    found = {"small": times(20, 0, 0, 80)}
    assert line(found, "data.loader_workers=4") is None
    assert line(found, "data.loader_workers=2") == (
        "waiting for data: small 50% of a step (20 of 40 ms); data.loader_workers: 5 would do (now 2)"
    )


def test_cores_that_do_not_suffice() -> None:
    """Two threads compute; loading takes 1.5 cores for small and 0.05 for big."""
    assert str(line(SLOW_DATA, cores=4)).endswith("data.loader_workers: 2 would do (now 0)")
    assert str(line(SLOW_DATA, cores=3)).endswith(
        "more loader processes do not help: loading and computing take 4 cores, and h has 3"
    )
    many = {"big": times(210, 0, 190, 190), "small": times(210, 0, 190, 190)}
    assert str(line(many, cores=9)).endswith(
        "data.loader_workers: 11 would do (now 0), but the 9 cores of h have room for 3"
    )


def test_each_host_has_its_own_cores_and_a_gpu_leaves_them_free() -> None:
    alone = "data.loader_workers: 2 would do (now 0)"
    assert str(line(SLOW_DATA, cores=3, small="other")).endswith(alone)
    two_threads = line(SLOW_DATA, "students.small.resources.cpu=2", cores=3, small="other")
    assert str(two_threads).endswith(f"{alone}, but the 3 cores of other have room for 1")
    on_gpu = placed(3, "H100 (GPU 0)", small="other")
    recipe = make_recipe("students.small.resources.cpu=2")
    assert str(data_wait(recipe, on_gpu, SLOW_DATA)).endswith(alone)


def recorded(*epochs: dict[str, Times]) -> Iterator[tuple[str, int, int, str, Times]]:
    """Two steps an epoch: the first takes a second longer."""
    for epoch, found in enumerate(epochs):
        for step in (2 * epoch, 2 * epoch + 1):
            for name, own in found.items():
                more = {} if step % 2 else {"step_s": own["step_s"] + 1, "data_s": own["data_s"] + 1}
                yield name, epoch, step, "train", own | more | {"loss": 1.0, "lr": 0.1, "forward_s": 0.01}
                yield name, epoch, step, "analysis", {"step_s": 9.0}


def test_the_last_epoch_counts_without_its_first_step(tmp_path: Path) -> None:
    fast = {name: times(20, 0, 0.1, 0.1) for name in SLOW_DATA}
    first_slow = write_run(tmp_path / "a", make_recipe(), recorded(SLOW_DATA, fast))
    assert read_data_wait(first_slow) is None
    last_slow = write_run(tmp_path / "b", make_recipe(), recorded(fast, SLOW_DATA), placement=placed(8))
    assert str(read_data_wait(last_slow)).startswith("waiting for data: small 60% of a step (30 of 50 ms);")
    assert run_view(load(last_slow)).data_wait == read_data_wait(last_slow)
    assert unescape(str(read_data_wait(last_slow))) in unescape(page([load(last_slow)]))


def test_a_folder_that_cannot_be_read_is_no_error(tmp_path: Path) -> None:
    assert read_data_wait(str(tmp_path)) is None
    run = write_run(tmp_path / "run", make_recipe(), iter([]))
    assert read_data_wait(run) is None
    (tmp_path / "run" / "metrics").mkdir(exist_ok=True)
    (tmp_path / "run" / "metrics" / "epoch-0000.parquet").write_bytes(b"no table")
    assert read_data_wait(run) is None
