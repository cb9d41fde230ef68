"""Fixtures of all tests; their helpers are in tests/support."""

from __future__ import annotations

import gc
import json
import multiprocessing.util
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cohorts import SUPPORT, Inject, MakeRecipe, recipe_text, write_images
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.launch import forkserver
from kdcl_dist.launch.forkserver import start_server
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.run import Run

# On a busy machine the drawing of examples takes long as well.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

#: Folders whose files share what is costly to make: a Ray cluster, the exports of a run.
SHARING = ("on_ray", "export")
#: The test files that take longest, longest first; some are such folders.
SLOW_FILES = (
    "on_ray",
    "test_cluster_hosts.py",
    "test_detection.py",
    "test_pages.py",
    "test_recovery.py",
    "test_hosts_ray.py",
    "test_fault_matrix.py",
    "test_continue.py",
    "test_hangs.py",
    "test_window.py",
    "test_exchange.py",
    "test_golden.py",
    "export",
    "test_faults.py",
    "test_ray_metrics.py",
    "test_coordinators.py",
    "test_storage_s3.py",
    "test_equals_reference.py",
    "test_tracking.py",
    "test_training_fields.py",
    "test_compare_runs.py",
    "test_paper_recipes.py",
    "test_cli_runs.py",
    "test_preflight_ray.py",
    "test_export_formats.py",
    "test_python.py",
    "test_replicas.py",
    "test_gpu_parts.py",
    "test_distribution.py",
    "test_served.py",
    "test_fashion_mnist.py",
    "test_notebooks.py",
    "test_joining.py",
    "test_gpu_benchmark.py",
    "test_imports.py",
    "test_compile.py",
    "test_torch_sources.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Keep the solver's machine code for the next test run, in folders by what it depends on.

    Numba reads the variable when it is imported. With `-p no:cacheprovider` nothing is kept.
    """
    if (cache := getattr(config, "cache", None)) is not None:
        os.environ["NUMBA_CACHE_DIR"] = str(cache.mkdir("numba"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no process works alone on one at the end.

    The sort is stable: pytest-randomly's order within a file, and of the other files, stays.
    """
    position = {name: number for number, name in enumerate(SLOW_FILES)}

    def place(item: pytest.Item) -> int:
        folder, name = item.path.parts[-2:]
        return position.get(folder if folder in SHARING else name, len(SLOW_FILES))

    items.sort(key=place)


class ByFile(LoadFileScheduling):
    """A file's tests stay in one process, with what they share, and so do those of a folder of `SHARING`."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        folder = Path(file).parent.name
        return folder if folder in SHARING else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    """Let `--dist loadfile` keep the tests of a Ray cluster together."""
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


#: Collections would pass over all that is imported, each for 0.4 s: none while the tests are collected.
gc.disable()


def pytest_collection_finish() -> None:
    """Exclude what is there by now from garbage collections."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of injected faults, see tests/support/inject: all processes that the tests start read it.

    These processes also find the networks of the tests, whatever their working directory is.
    """
    path = tmp_path_factory.mktemp("faults") / "faults.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCL_TEST_FAULTS", str(path))
        # What is found in data sets is not kept in the user's cache.
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # The same numbers on every machine: GPUs are hidden.
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        # Where no number of threads is set: idle ones of torch keep a core from the other processes.
        patch.setenv("OMP_NUM_THREADS", "1")
        # Ray's workers give way to all other processes by default: beside busy ones they would hardly run.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("KDCL_TEST_LIGHT_WORKERS", "1")
        # Those that it starts in advance serve nobody: most of a run's have an environment of their own.
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        # Ray Train looks at its workers every 2 s otherwise, and so notes an end or a death as late.
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        # Of hosts that are taken away only test_hosts_ray.py knows; who looks for such takes 1.5 s each time.
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        for folder in (SUPPORT, SUPPORT / "inject"):
            patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield path


@pytest.fixture(scope="session", autouse=True)
def _server(faults: Path) -> Iterator[None]:
    """The server of a run's processes comes first, with all their imports.

    A process has one server. One that loaders started would lack imports, which then take seconds in each
    process of each run.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "MODULES", [*forkserver.MODULES, "preloaded"])
        patch.setattr(forkserver, "ANSWER_S", 60.0)  # the server tells all exit codes, however slow it is
        start_server()
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_folder_of_sockets_is_left() -> Iterator[None]:
    """pytest-xdist ends its workers without the clean-up of multiprocessing."""
    yield
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over several threads may differ in the last bit; every test starts from one thread."""
    torch.set_num_threads(1)
    yield
    deadline = time.monotonic() + 100  # those that were told to end may need a moment
    while left := [t.name for t in threading.enumerate() if t.name.startswith("kdcl-")]:
        assert time.monotonic() < deadline, f"threads were left behind: {left}"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a small training and test set."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "train": str(write_images(folder / "train.arrow", 60, seed=1)),
        "test": str(write_images(folder / "test.arrow", 22, seed=2)),
    }


@pytest.fixture
def make_recipe(data: dict[str, str]) -> MakeRecipe:
    """A recipe of two small students; arguments are overrides as `--set` takes them."""
    return lambda *overrides: parse_recipe(recipe_text(data), overrides)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A new run of a recipe in a temporary folder, or its continuation."""

    def make(recipe: Recipe, name: str | None = None, resume: bool = False) -> Run:
        name = name or uuid.uuid4().hex
        return prepare(recipe, str(tmp_path / "runs"), name, resume=resume, warn=print)

    return make


@pytest.fixture
def inject(faults: Path, tmp_path: Path) -> Iterator[Inject]:
    """Injects a fault into (who, phase, step), once; none outlasts its test. See tests/support/inject.

    Returns the file that exists as soon as the fault has been met.
    """

    def inject(
        who: str,
        phase: str,
        step: int,
        how: str,
        nth: int = 1,
        *,
        after: Path | str = "",
        until: Path | str = "",
    ) -> Path:
        number = len(faults.read_text().splitlines()) if faults.exists() else 0
        once = tmp_path / f"fault-{number}"
        fault = {"who": who, "phase": phase, "step": step, "how": how, "nth": nth}
        fault |= {"once": str(once), "after": str(after), "until": str(until)}
        with faults.open("a") as file:
            file.write(json.dumps(fault) + "\n")
        return once

    yield inject
    faults.unlink(missing_ok=True)
